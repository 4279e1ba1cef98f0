"""Writes ``golden/*.npz``: what torchvision's networks give, for machines without it. ``python make_golden.py [NAME...]``

Weights and images come from ``formula.py``, and the networks from torchvision (fully connected layers of 32 units instead
of 4096, and no dropout). All is float64, on images of 64x64, with 7 classes. A file has, for "eval" and "train":

* ``eval.output``, ``train.output0`` (and 1, 2: auxiliary heads): scores (2, 7)
* ``train.gradients``: a row for each parameter, in alphabetical order: the norm of its gradient, the sum of its gradient
  times ``noise``, of the loss ``sum(scores * noise)`` over the outputs; NaN where there is none
* ``train.statistics``: the norm of each running mean and variance after the step
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from formula import noise, weight

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = {name: {} for name in ("alexnet", "vgg11_bn", "resnet18", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "squeezenet1_1")}
NETWORKS["googlenet"] = {"aux_logits": True, "init_weights": False}
CLASSES, IMAGES, HIDDEN = 7, (2, 3, 64, 64), 32


def narrow(classifier: Any) -> None:
    """Make all but the last linear layer ``HIDDEN`` wide; dropout goes."""
    linear = [i for i, part in enumerate(classifier) if isinstance(part, torch.nn.Linear)]
    for i, before in zip(linear, [None, *linear]):
        inputs = classifier[i].in_features if before is None else HIDDEN
        classifier[i] = torch.nn.Linear(inputs, CLASSES if i == linear[-1] else HIDDEN)


def network(name: str) -> Any:
    """torchvision's module in float64, with a state by formula."""
    model = getattr(torchvision.models, name)(num_classes=CLASSES, **NETWORKS[name])
    if name.startswith(("alexnet", "vgg")):
        narrow(model.classifier)
    model.double()
    for entry, value in model.state_dict().items():
        if not entry.endswith("num_batches_tracked"):
            value.copy_(torch.tensor(weight(entry, tuple(value.shape))))
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def record(name: str) -> dict[str, np.ndarray]:
    """What the file of a network holds."""
    model, x = network(name), torch.tensor(noise("images", IMAGES))
    out = {"eval.output": model.eval()(x).detach().numpy()}
    scores = model.train()(x)
    scores = scores if isinstance(scores, tuple) else (scores,)
    sum((s * torch.tensor(noise(f"loss{i}", tuple(s.shape)))).sum() for i, s in enumerate(scores)).backward()
    out |= {f"train.output{i}": s.detach().numpy() for i, s in enumerate(scores)}
    parameters = sorted(model.named_parameters())
    grads = {n: np.full(p.shape, np.nan) if p.grad is None else p.grad.numpy() for n, p in parameters}
    out["train.gradients"] = np.array([summary(n, g) for n, g in grads.items()])
    running = [b for n, b in sorted(model.named_buffers()) if not n.endswith("num_batches_tracked")]
    out["train.statistics"] = np.array([np.linalg.norm(b.numpy()) for b in running])
    return out


def summary(name: str, gradient: np.ndarray) -> tuple[float, float]:
    """Two numbers of a gradient: its norm, and its sum weighted by noise, which no permutation keeps."""
    return float(np.linalg.norm(gradient)), float((gradient * noise(f"{name}.grad", gradient.shape)).sum())


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or NETWORKS:
        np.savez_compressed(GOLDEN / f"{chosen}.npz", **record(chosen))
