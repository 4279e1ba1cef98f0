"""The networks that torchvision has against numbers that it gave (``make_golden.py``): needs neither it nor torch.

float64 on the reference device, so that a difference is one of definition and not of rounding; and float32 compiled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formula import noise, weight

import twofold as tw
from twofold import nn, zoo

FILES = sorted(Path(__file__).parent.glob("golden/*.npz"))
OPTIONS = {"alexnet": {"hidden": 32}, "vgg11_bn": {"hidden": 32}, "googlenet": {"aux_logits": True}}
FAMILIES = {"alexnet", "vgg11_bn", "googlenet", "resnet18", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "squeezenet1_1"}
IMAGES = (2, 3, 64, 64)


def network(name: str, dtype: str) -> nn.Module:
    """With weights by formula, and without dropout."""
    with nn.init.skipped():
        model = zoo.create(name, num_classes=7, **OPTIONS.get(name, {})).to(dtype=dtype)
    state = model.state_dict()
    names = [n for n in state if not n.endswith("num_batches_tracked")]
    model.load_state_dict({**state, **{n: tw.tensor(weight(n, tuple(state[n].shape)).astype(dtype)) for n in names}})
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def close(got: Any, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """To ``tolerance`` of the largest number."""
    got = np.asarray(got)
    assert got.shape == expected.shape, what
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max(), what


def test_every_family_has_a_file():
    assert {p.stem for p in FILES} == FAMILIES
    assert sum(p.stat().st_size for p in FILES) < 200_000


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_scores_gradients_and_statistics_are_pytorchs(path):
    golden = np.load(path)
    with tw.device("reference"):
        model, x = network(path.stem, "float64"), tw.tensor(noise("images", IMAGES))
        with tw.no_grad():
            close(model.eval()(x).numpy(), golden["eval.output"], 1e-9, "eval")
        scores = model.train()(x)
        scores = scores if isinstance(scores, tuple) else (scores,)
        for i, s in enumerate(scores):
            close(s.numpy(), golden[f"train.output{i}"], 1e-8, f"train, output {i}")
        sum((s * tw.tensor(noise(f"loss{i}", tuple(s.shape)))).sum() for i, s in enumerate(scores)).backward()
        parameters = sorted(dict(model.named_parameters()).items())
        for (name, p), (norm, product) in zip(parameters, golden["train.gradients"], strict=True):
            assert (p.grad is None) == np.isnan(norm), name
            if p.grad is not None:
                g = p.grad.numpy()
                assert abs(np.linalg.norm(g) - norm) <= 1e-7 * norm + 1e-12, name
                assert abs((g * noise(f"{name}.grad", g.shape)).sum() - product) <= 1e-7 * norm * g.size**0.5 + 1e-12, name
        running = [b for n, b in sorted(model.named_buffers()) if n.endswith(("running_mean", "running_var"))]
        close([np.linalg.norm(b.numpy()) for b in running] or [0.0], golden["train.statistics"] if running else np.zeros(1), 1e-9)


@pytest.mark.parametrize("path", [p for p in FILES if p.stem in ("alexnet", "resnet18", "squeezenet1_1")], ids=lambda p: p.stem)
def test_compiled_scores_in_float32_are_pytorchs(path):
    model = network(path.stem, "float32").eval()
    x = tw.tensor(noise("images", IMAGES).astype(np.float32))
    close(tw.compile(model)(x).numpy(), np.load(path)["eval.output"], 1e-4)
