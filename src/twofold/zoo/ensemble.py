"""Ensembles: several networks that vote. Every winner of the ImageNet challenge from 2012 to 2017 was one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import show
from twofold.nn import functional as F


class Ensemble(nn.Module):
    """``(N, C, H, W)`` to probabilities ``(N, num_classes)``: the mean of the members' softmax outputs.

    It is a module like any other: it compiles, and exports as one graph. ``loss`` trains all members through the mean.
    """

    def __init__(self, members: Sequence[nn.Module]):
        members = list(members)
        if not members:
            raise ArgumentError("ensemble: no members; expected a list of at least one network")
        self.members = nn.ModuleList(members)

    def forward(self, x: Any) -> Any:
        scores = [member(x) for member in self.members]
        for i, s in enumerate(scores):
            if isinstance(s, tuple):
                s = scores[i] = s[0]  # the main scores of a network with auxiliary heads
            if s.shape != scores[0].shape:
                raise ShapeError(
                    f"ensemble: member {i} gives {show(s.shape)}, member 0 {show(scores[0].shape)}; expected equal "
                    "shapes"
                )
        probabilities = [F.softmax(s, axis=-1) for s in scores]
        return sum(probabilities[1:], probabilities[0]) * (1 / len(probabilities))

    def loss(self, probabilities: Any, targets: Any) -> Any:
        """Minus the mean log probability of the targets."""
        return F.nll_loss(tw.log(probabilities), targets)


def ensemble(members: Sequence[nn.Module]) -> Ensemble:
    """A network that averages the softmax outputs of ``members``.

    >>> import twofold as tw
    >>> vote = tw.zoo.ensemble([tw.zoo.create("lenet5") for _ in range(3)])
    >>> vote.eval()(tw.zeros((2, 1, 28, 28))).shape
    (2, 10)
    """
    return Ensemble(members)
