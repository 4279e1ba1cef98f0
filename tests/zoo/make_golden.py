"""Writes ``golden/*.npz``: what the networks give with PyTorch, for machines without it. ``python make_golden.py [NAME...]``

Weights and images come from ``formula.py``, and the networks from ``torch_networks.py``, which writes torchvision's
definitions with PyTorch's functions. All is float64, on images of 64x64, with 7 classes. A file has, for "eval" and "train":

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
from formula import noise, weight
from torch_networks import ORACLES, Oracle

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = ("alexnet", "vgg11_bn", "googlenet", "resnet18", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "squeezenet1_1")
CLASSES, IMAGES = 7, (2, 3, 64, 64)


def state_of(shapes: dict[str, tuple[int, ...]], parameters: set[str]) -> dict[str, Any]:
    """A state dict by formula."""
    return {n: torch.tensor(weight(n, s), requires_grad=n in parameters) for n, s in shapes.items()}


def record(name: str) -> dict[str, np.ndarray]:
    """What the file of a network holds; names and shapes of the state dict are the zoo's."""
    from twofold import nn, zoo

    forward, options = ORACLES[name]
    with nn.init.skipped():
        model = zoo.create(name, num_classes=CLASSES, **options)
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    parameters, x = {n for n, _ in model.named_parameters()}, torch.tensor(noise("images", IMAGES))
    out = {"eval.output": forward(Oracle(state_of(shapes, parameters), False), x).detach().numpy()}
    state = state_of(shapes, parameters)
    scores = forward(Oracle(state, True), x)
    scores = scores if isinstance(scores, tuple) else (scores,)
    sum((s * torch.tensor(noise(f"loss{i}", tuple(s.shape)))).sum() for i, s in enumerate(scores)).backward()
    out |= {f"train.output{i}": s.detach().numpy() for i, s in enumerate(scores)}
    grads = {n: state[n].grad.numpy() if state[n].grad is not None else np.full(shapes[n], np.nan) for n in sorted(parameters)}
    out["train.gradients"] = np.array([summary(n, g) for n, g in grads.items()])
    running = sorted(set(shapes) - parameters)
    out["train.statistics"] = np.array([np.linalg.norm(state[n].detach().numpy()) for n in running])
    return out


def summary(name: str, gradient: np.ndarray) -> tuple[float, float]:
    """Two numbers of a gradient: its norm, and its sum weighted by noise, which no permutation keeps."""
    return float(np.linalg.norm(gradient)), float((gradient * noise(f"{name}.grad", gradient.shape)).sum())


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or NETWORKS:
        np.savez_compressed(GOLDEN / f"{chosen}.npz", **record(chosen))
