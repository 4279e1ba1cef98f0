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


def ranks(logits: Any, labels: Any) -> Any:
    """How many classes come before each label, int64 (N,). Of equal logits the first comes first, as for ``argmax``: a
    network that says the same of every class is right about the first one alone. What is not a number is before all."""
    own, place = tw.take_along_axis(logits, labels[:, None], axis=1), tw.arange(logits.shape[1])
    equal_before = tw.logical_and(logits == own, place < labels[:, None])
    return tw.logical_or(tw.logical_not(logits <= own), equal_before).astype(tw.int64).sum(axis=1)


def scoring(
    model: Any, criterion: Callable[[Any, Any], Any] | None = None, compiled: bool = True, devices: Any = None
) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
    """The step of ``evaluate``: of a batch its mean loss, and how many labels are the first, and among the first five."""
    criterion = criterion or criterion_of(model)

    def measure(images: Any, labels: Any) -> Any:
        output = model(images)
        logits = main_output(output)
        before, most = ranks(logits, labels), min(5, logits.shape[1])  # what is not a number has all classes before it
        return criterion(output, labels), (before == 0).astype(tw.int64).sum(), (before < most).astype(tw.int64).sum()

    return tw.compile(measure, devices=devices) if compiled else measure


def evaluate(
    model: Any, loader: Any, *, criterion: Callable[[Any, Any], Any] | None = None, compiled: bool = True,
    devices: Any = None,
) -> Score:  # fmt: skip
    """Score of ``model`` in evaluation mode over all batches of ``loader``; its modules' modes are put back after."""
    return score(model, loader, scoring(model, criterion, compiled, devices))


def score(model: Any, loader: Any, step: Callable[[Any, Any], tuple[Any, Any, Any]]) -> Score:
    """The same by a ``step`` of ``scoring``, made once, for whoever evaluates again and again."""
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
