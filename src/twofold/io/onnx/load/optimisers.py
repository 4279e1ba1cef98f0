"""Optimiser steps as operators (``ai.onnx.preview.training``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twofold.base.dtypes import int64
from twofold.base.errors import FormatError
from twofold.io.onnx.load.rows import row
from twofold.ir import Value
from twofold.ops import cast, where
from twofold.ops import elementwise as el
from twofold.ops.movement import reshape

TRAINING = "ai.onnx.preview.training"


def _groups(c: Any, states: int) -> tuple[Value, Value, list[tuple[Value, ...]]]:
    """Learning rate, step count, and (x, g, state...) for each optimised tensor."""
    values = c.values()
    count, rest = divmod(len(values) - 2, 2 + states)
    if rest or count < 1:
        raise FormatError(f"{len(values)} inputs; expected 2 and {2 + states} for each tensor")
    columns = [values[2 + i * count : 2 + (i + 1) * count] for i in range(2 + states)]
    return values[0], values[1], list(zip(*columns))


def _interleaved(rows: Sequence[tuple[Value, ...]]) -> tuple[Value, ...]:
    return tuple(v for column in zip(*rows) for v in column)


@row("Adagrad", domain=TRAINING)
def _adagrad(c: Any) -> Any:
    rate, step, groups = _groups(c, 1)
    eps, decay, norm = c.attr("epsilon", 1e-6), c.attr("decay_factor", 0.0), c.attr("norm_coefficient", 0.0)
    rate = rate / (cast(step, rate.dtype) * decay + 1.0)
    rows = []
    for x, g, h in groups:
        g = g + x * norm
        h = h + g * g
        rows.append((x - rate * g / (el.sqrt(h) + eps), h))
    return _interleaved(rows)


@row("Adam", domain=TRAINING)
def _adam(c: Any) -> Any:
    rate, step, groups = _groups(c, 2)
    a, b, eps = c.attr("alpha", 0.9), c.attr("beta", 0.999), c.attr("epsilon", 1e-6)
    norm, post = c.attr("norm_coefficient", 0.0), c.attr("norm_coefficient_post", 0.0)
    t = cast(step, rate.dtype)
    adjusted = rate * el.sqrt(1.0 - el.pow_(t * 0.0 + b, t)) / (1.0 - el.pow_(t * 0.0 + a, t))
    rate = where(step > 0, adjusted, rate)
    rows = []
    for x, g, v, h in groups:
        g = g + x * norm
        v = v * a + g * (1 - a)
        h = h * b + g * g * (1 - b)
        rows.append(((x - rate * v / (el.sqrt(h) + eps)) * (1 - post), v, h))
    return _interleaved(rows)


@row("Momentum", domain=TRAINING)
def _momentum(c: Any) -> Any:
    rate, step, groups = _groups(c, 1)
    a, b, norm, mode = c.attr("alpha"), c.attr("beta"), c.attr("norm_coefficient"), c.attr("mode")
    first = el.equal(reshape(cast(step, int64), ()), 0)
    rows = []
    for x, g, v in groups:
        g = g + x * norm
        fresh = g * b
        v = v * a + where(first, g, fresh)
        rows.append((x - rate * (g + v * a if mode == "nesterov" else v), v))
    return _interleaved(rows)
