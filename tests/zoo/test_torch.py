"""Values and gradients of the networks that torchvision has, against the same networks written with PyTorch's functions
(``torch_networks.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold import nn, zoo

torch = pytest.importorskip("torch")
from torch_networks import ORACLES, Oracle  # noqa: E402 (needs torch)

HEAVY = {"wide_resnet50_2", "resnext50_32x4d", "densenet121", "vgg16_bn"}


def close(got: Any, expected: Any, what: str = "") -> None:
    """To 1e-8 of the largest number: float64 through a hundred layers."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert np.abs(got - expected).max() <= 1e-8 * np.abs(expected).max() + 1e-12, what


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in ORACLES])
def test_values_and_gradients(name, training):
    """float64 on both sides, so that a difference is one of definition and not of rounding."""
    forward, options = ORACLES[name]
    tw.random.seed(4)
    model = zoo.create(name, num_classes=7, **options).train(training)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    rng = np.random.default_rng(0)
    for buffer_name, buffer in model.named_buffers():  # statistics that are not 0 and 1
        if buffer_name.endswith("running_var"):
            buffer.assign(tw.tensor(rng.uniform(0.5, 1.5, buffer.shape).astype(np.float32)))
        elif buffer_name.endswith("running_mean"):
            buffer.assign(tw.tensor(rng.normal(0, 0.1, buffer.shape).astype(np.float32)))
    model.to(dtype="float64")
    parameters = dict(model.named_parameters())
    state = {n: torch.tensor(v.numpy(), requires_grad=n in parameters) for n, v in model.state_dict().items()}
    x = rng.normal(size=(2, 3, 64, 64))
    expected = forward(Oracle(state, training), torch.tensor(x))
    got = model(tw.tensor(x))
    pairs = list(zip(got, expected)) if isinstance(expected, tuple) else [(got, expected)]
    for i, (ours, theirs) in enumerate(pairs):
        close(ours.numpy(), theirs.detach().numpy(), f"output {i}")
    weights = [rng.normal(size=tuple(theirs.shape)) for _, theirs in pairs]
    sum((ours * tw.tensor(w)).sum() for (ours, _), w in zip(pairs, weights)).backward()
    sum((theirs * torch.tensor(w)).sum() for (_, theirs), w in zip(pairs, weights)).backward()
    for n, parameter in parameters.items():
        if state[n].grad is not None:
            close(parameter.grad.numpy(), state[n].grad.numpy(), n)
    for n, buffer in model.named_buffers():
        if not n.endswith("num_batches_tracked"):
            close(buffer.numpy(), state[n].numpy(), n)
