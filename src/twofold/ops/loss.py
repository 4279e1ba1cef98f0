"""Losses: numbers to minimise, from predictions and targets. ``reduction`` is "mean", "sum" or "none"."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dims import Sym
from twofold.base.errors import ArgumentError, DtypeError, IndexRangeError, ShapeError
from twofold.base.shapes import show
from twofold.ir import Value
from twofold.ops.activation import log_softmax, softplus, widened
from twofold.ops.convert import cast, value
from twofold.ops.elementwise import abs_, relu, where
from twofold.ops.gather import take_along_axis
from twofold.ops.movement import expand_dims, squeeze
from twofold.ops.precision import in_float32, rounded_once
from twofold.ops.reduction import mean
from twofold.ops.reduction import sum as sum_


def reduced(x: Value, reduction: str) -> Value:
    """A loss per element brought to what the caller asked for."""
    if reduction == "none":
        return x
    if reduction not in ("mean", "sum"):
        raise ArgumentError(f"reduction={reduction!r}; expected 'mean', 'sum' or 'none'")
    return mean(x) if reduction == "mean" else sum_(x)


def _same_shape(name: str, x: Value, target: Value) -> None:
    if x.shape != target.shape:
        raise ShapeError(
            f"{name}: predictions have shape {show(x.shape)}, targets {show(target.shape)}; expected one shape: "
            "broadcasting would compare every prediction with every target. Use reshape or squeeze"
        )


# ---- classification --------------------------------------------------------------------------------------------------


def _check_labels(name: str, logits: Value, labels: Value) -> int:
    """The class axis; labels must be integers of the logits' shape without it, and known ones in range."""
    axis = 0 if logits.ndim == 1 else 1
    expected = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if not labels.dtype.is_integer:
        raise DtypeError(
            f"{name}: labels have dtype {labels.dtype.name}; expected integers; cast with .astype(tw.int64)"
        )
    if labels.shape != expected:
        hint = "; one-hot labels must be floating" if labels.shape == logits.shape else ""
        raise ShapeError(
            f"{name}: labels have shape {show(labels.shape)}; expected {show(expected)} for predictions of shape "
            f"{show(logits.shape)}, whose classes are dimension {axis}{hint}"
        )
    if hasattr(labels, "buffer") and not isinstance(logits.shape[axis], Sym):
        _check_range(name, labels.numpy(), int(logits.shape[axis]))  # type: ignore[attr-defined]
    return axis


def _check_range(name: str, labels: np.ndarray, classes: int) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        where_ = f"sample {place[0]}" if len(place) == 1 else f"position {place}" if place else "the only sample"
        raise IndexRangeError(
            f"{name}: label {int(labels[place])} of {where_} is out of range; expected 0 <= label < {classes}, "
            "the number of classes predicted"
        )


def _picked(x: Value, labels: Value, axis: int) -> Value:
    """``x[..., label, ...]`` for each label. Negative ones are sent out of range: no program takes them."""
    labels = cast(labels, "int64")
    beyond = where(labels < 0, x.shape[axis], labels)
    return squeeze(take_along_axis(x, expand_dims(beyond, axis), axis=axis), axis)


@rounded_once
def nll_loss(log_probabilities: Any, labels: Any, reduction: str = "mean") -> Value:
    """Negative log-likelihood: minus the log-probability of each label. ``(N, C, ...)`` and int labels ``(N, ...)``."""
    x = value(log_probabilities)
    labels = value(labels, (x,))
    axis = _check_labels("nll_loss", x, labels)
    return reduced(-_picked(x, labels, axis), reduction)


@in_float32
def cross_entropy(logits: Any, labels: Any, reduction: str = "mean", label_smoothing: float = 0.0) -> Value:
    """Softmax cross-entropy of logits ``(N, C, ...)`` with int labels ``(N, ...)`` or probabilities ``(N, C, ...)``.

    ``label_smoothing`` mixes the target with the uniform distribution (Szegedy et al. 2016). A label outside
    ``[0, C)`` is an IndexRangeError that names it.
    """
    logits = value(logits)
    labels = value(labels, (logits,))
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"cross_entropy: label_smoothing={label_smoothing}; expected a number in [0, 1]")
    if not logits.dtype.is_floating or logits.ndim == 0:
        raise ShapeError(
            f"cross_entropy: logits are {logits.spec}; expected floating numbers of shape (N, C) or (N, C, ...)"
        )
    soft = labels.dtype.is_floating and labels.shape == logits.shape
    axis = (0 if logits.ndim == 1 else 1) if soft else _check_labels("cross_entropy", logits, labels)
    logp = log_softmax(widened(logits), axis=axis)
    loss = -sum_(logp * cast(labels, logp.dtype), axis=axis) if soft else -_picked(logp, labels, axis)
    if label_smoothing:
        loss = loss * (1.0 - label_smoothing) - mean(logp, axis=axis) * label_smoothing
    return cast(reduced(loss, reduction), logits.dtype)


@rounded_once
def binary_cross_entropy_with_logits(logits: Any, target: Any, reduction: str = "mean") -> Value:
    """Cross-entropy of ``sigmoid(logits)`` with targets in [0, 1], elementwise; does not overflow."""
    x = value(logits)
    target = value(target, (x,))
    _same_shape("binary_cross_entropy_with_logits", x, target)
    return reduced(softplus(x) - x * cast(target, x.dtype), reduction)


# ---- regression ------------------------------------------------------------------------------------------------------


def _difference(name: str, x: Any, target: Any) -> Value:
    x = value(x)
    target = value(target, (x,))
    _same_shape(name, x, target)
    return x - target


@rounded_once
def mse_loss(x: Any, target: Any, reduction: str = "mean") -> Value:
    """Squared difference. Shapes must be equal: ``(N, 1)`` against ``(N,)`` is refused."""
    difference = _difference("mse_loss", x, target)
    return reduced(difference * difference, reduction)


@rounded_once
def l1_loss(x: Any, target: Any, reduction: str = "mean") -> Value:
    """Absolute difference. Shapes must be equal."""
    return reduced(abs_(_difference("l1_loss", x, target)), reduction)


@rounded_once
def huber_loss(x: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Value:
    """Half the squared difference up to ``delta``, then linear (Huber 1964)."""
    size = abs_(_difference("huber_loss", x, target))
    beyond = relu(size - float(delta))
    inside = size - beyond
    return reduced(inside * inside * 0.5 + beyond * float(delta), reduction)


@rounded_once
def smooth_l1_loss(x: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Value:
    """Huber's loss divided by ``beta``."""
    return huber_loss(x, target, reduction, beta) * (1 / float(beta))


__all__ = [
    "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss", "l1_loss", "mse_loss", "nll_loss",
    "smooth_l1_loss",
]  # fmt: skip
