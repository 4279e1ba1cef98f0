"""Measuring a model on a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import twofold as tw
from twofold.nn import functional as F


class Score(NamedTuple):
    """Mean loss, and the share of samples whose label is the first (among the first five) of the predictions."""

    loss: float
    accuracy: float
    top5: float
    samples: int


def main_output(output: Any) -> Any:
    """The logits among a network's outputs: networks with auxiliary heads give several, the main one first."""
    return output[0] if isinstance(output, (tuple, list)) else output


def criterion_of(model: Any) -> Callable[[Any, Any], Any]:
    """The loss of a network: its own ``loss(output, labels)``, else the cross-entropy of its logits."""
    own = getattr(model, "loss", None)
    return own if callable(own) else F.cross_entropy


def evaluate(
    model: Any, loader: Any, *, criterion: Callable[[Any, Any], Any] | None = None, compiled: bool = True,
    devices: Any = None,
) -> Score:  # fmt: skip
    """Score of ``model`` in evaluation mode over all batches of ``loader``; its modules' modes are put back after."""
    criterion = criterion or criterion_of(model)

    def measure(images: Any, labels: Any) -> Any:
        output = model(images)
        logits = main_output(output)
        ranked = (logits > tw.take_along_axis(logits, labels[:, None], axis=1)).astype(tw.int64).sum(axis=1)
        return criterion(output, labels), (ranked == 0).astype(tw.int64).sum(), (ranked < 5).astype(tw.int64).sum()

    step = tw.compile(measure, devices=devices) if compiled else measure
    total, first, five, count = 0.0, 0, 0, 0
    with model.evaluating(), tw.no_grad():
        for images, labels in loader:
            loss, right, among_five = step(images, labels)
            size = int(labels.shape[0])
            total += float(loss) * size
            first += int(right)
            five += int(among_five)
            count += size
    if count == 0:
        raise tw.DataError("evaluate: the loader gave no samples")
    return Score(total / count, first / count, five / count, count)
