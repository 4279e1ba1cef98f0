"""The smallest network of every architecture of the zoo, for tests that train all of them, and real images to train them on.

The rows come from the zoo's table: of each architecture (module class) the variant with the fewest multiply-adds, at the least
depth and width and the smallest images that keep its form.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from twofold import data, nn, zoo
from twofold.zoo.registry import Entry

OPTIONS = {"hidden": 16, "aux_logits": True}  # where a network has them: small, and every part of it in use
LEAST_SIDE = 8
SHORT = {
    "depths": lambda depths: (1,) * len(depths), "width": lambda _: 1, "base_width": lambda _: 4,
    "columns": lambda _: 2, "channels": lambda channels: (8,) * len(channels), "first": lambda _: 8,
}  # fmt: skip
NOT_SHORT = {"SqueezeNet": ("first",)}  # a pair of channels and kernel there


def short(entry: Entry) -> Entry:
    """The entry at the least depth and width of its form."""
    keep = NOT_SHORT.get(entry.build.__name__, ())
    fixed = {k: SHORT[k](v) if k in SHORT and k not in keep else v for k, v in entry.fixed.items()}
    if "depth" in fixed:  # 6n + 2 or 6n + 4 layers, with bottlenecks 9n + 2: n = 1
        period = 9 if "Bottleneck" in str(fixed.get("block")) else 6
        fixed["depth"] = period + fixed["depth"] % period
    return replace(entry, fixed=fixed)


def families() -> dict[str, Entry]:
    """The cheapest entry of each architecture, in short, by name."""
    cheapest: dict[Any, Entry] = {}
    for entry in sorted(map(zoo.info, zoo.names()), key=lambda entry: entry.macs):
        cheapest.setdefault(entry.build, entry)
    return {entry.name: short(entry) for entry in cheapest.values()}


FAMILIES = families()


def least_side(entry: Entry) -> int:
    """The side of the smallest images that the network is trained on here."""
    smallest = entry.domain.smallest_adapted or entry.domain.smallest
    return entry.input_shape[1] if entry.name.startswith("lenet") else max(LEAST_SIDE, smallest)


def small(entry: Entry, side: int, classes: int = 5) -> nn.Module:
    """The network for images of ``side`` x ``side``, with narrow fully connected layers."""
    options = {name: value for name, value in OPTIONS.items() if name in entry.options}
    return entry(classes, **entry.options_for((entry.input_shape[0], side, side)), **options)


def training_step(model: nn.Module, loss_of: Any, optimizer: Any) -> Any:
    """A step as the README writes it; gives the loss."""

    def step(x: Any, y: Any) -> Any:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Four scanned digits, float32 (4, 1, 8, 8) in 0..1, and which of the first five they are."""
    scans = data.load("digits", "train")
    pairs = [scans[i] for i in range(100) if int(scans[i][1]) < 5][:4]
    return np.stack([np.asarray(x, np.float32) for x, _ in pairs]), np.array([int(y) for _, y in pairs])
