"""A numeric checker of gradients, in float64: central differences against ``gradients``, to any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twofold.autodiff.gradients import gradients
from twofold.base.dtypes import float64
from twofold.base.errors import GradientError
from twofold.ir import Value, bind, grad_mode
from twofold.ops.convert import cast, constant
from twofold.ops.elementwise import identity
from twofold.ops.reduction import sum as sum_

# How users' functions are called: (value -> argument, result -> list of values). ``twofold.tensor`` puts tensors here.
INTERFACE: list[tuple[Callable[[Value], Any], Callable[[Any], list[Value]]]] = []

STEP = 1e-5  # of the differences: truncation about 1e-10, rounding about 1e-11
SHOWN = 8  # mismatches listed in a report


def check(
    f: Callable[..., Any], inputs: Sequence[Any], order: int = 2, *, rtol: float = 1e-5, atol: float = 1e-7
) -> None:
    """Compare the gradients of ``f(*inputs)`` with central differences, in float64; to second order by default.

    ``inputs``: arrays (tensors, NumPy arrays, nested lists); the floating ones are cast to float64 and differentiated.
    ``f`` may return one tensor or a nest of them; a fixed weighted sum of all results is what is differentiated, and at
    the next order the weighted sum of the gradients. Raises GradientError, listing input, index, both numbers and their
    difference, unless ``|analytic - numeric| <= atol + rtol * max(|analytic|, |numeric|)`` everywhere.

    Functions with a kink at the given point (``abs`` at 0) have no gradient there and fail, as they should.

    >>> import twofold as tw
    >>> tw.autodiff.check(lambda x: tw.exp(x) * x, [[0.5, -1.0]])
    """
    arrays = [_as_array(x) for x in inputs]
    wanted = [i for i, a in enumerate(arrays) if a.dtype == np.float64]
    if not wanted:
        raise GradientError("check: no input is floating, so there is nothing to differentiate")
    for level in range(1, order + 1):
        analytic = _derivatives(f, arrays, wanted, level)[1]
        lines = [
            line for i, a in zip(wanted, analytic) for line in _compare(f, arrays, wanted, i, a, level, rtol, atol)
        ]
        if lines:
            more = f"\n  ... and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
            raise GradientError(
                f"check: order {level}: {len(lines)} of {sum(arrays[i].size for i in wanted)} derivatives differ from "
                "central differences:\n" + "\n".join(lines[:SHOWN]) + more
            )


def _as_array(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


def _derivatives(
    f: Callable[..., Any], arrays: Sequence[np.ndarray], wanted: Sequence[int], level: int
) -> tuple[float, list[np.ndarray]]:
    """The scalar of this level (1: of f; 2: of its gradients; ...) and its gradients."""
    to_argument, to_values = INTERFACE[-1] if INTERFACE else (lambda v: v, lambda r: [r])
    with grad_mode(True):
        xs = [bind("constant", value=a) for a in arrays]
        for i in wanted:
            xs[i].requires_grad = True
        scalar = _weighted(to_values(f(*map(to_argument, map(identity, xs)))))
        for n in range(level):
            gs = gradients([scalar], [xs[i] for i in wanted], create_graph=n < level - 1)
            if n < level - 1:
                scalar = _weighted([g for g in gs if g is not None])
    out = [np.zeros(arrays[i].shape) if g is None else np.asarray(g.numpy()) for i, g in zip(wanted, gs)]  # type: ignore[attr-defined]
    return float(scalar.numpy()), out  # type: ignore[attr-defined]


def _weighted(values: Sequence[Value]) -> Value:
    """One number from all elements, each with a weight of its own."""
    total: Value = constant(0.0, float64)
    for n, v in enumerate(values):
        if v.dtype.is_floating:
            weights = np.cos(np.arange(int(v.size)) * 0.9 + n).reshape(v.shape) + 1.25
            total = total + sum_(cast(v, float64) * constant(weights, float64))
    return total


def _compare(
    f: Callable[..., Any], arrays: Sequence[np.ndarray], wanted: Sequence[int], place: int, analytic: np.ndarray,
    level: int, rtol: float, atol: float,
) -> list[str]:  # fmt: skip
    """A line for each element of one input whose derivative is not what central differences say."""
    lines = []
    for index in np.ndindex(arrays[place].shape):
        step = STEP * max(1.0, abs(float(arrays[place][index])))
        ends = []
        for sign in (1, -1):
            moved = [a.copy() for a in arrays]
            moved[place][index] += sign * step
            ends.append(_value(f, moved, wanted, level))
        numeric, exact = (ends[0] - ends[1]) / (2 * step), float(analytic[index])
        if not abs(exact - numeric) <= atol + rtol * max(abs(exact), abs(numeric)):
            where = f"input {place}{list(index) if index else ''}"
            lines.append(
                f"  {where}: gradient {exact:.9g}, differences {numeric:.9g}, off by {abs(exact - numeric):.2g}"
            )
    return lines


def _value(f: Callable[..., Any], arrays: Sequence[np.ndarray], wanted: Sequence[int], level: int) -> float:
    if level == 1:
        to_argument, to_values = INTERFACE[-1] if INTERFACE else (lambda v: v, lambda r: [r])
        with grad_mode(False):
            values = to_values(f(*(to_argument(bind("constant", value=a)) for a in arrays)))
            return float(_weighted(values).numpy())  # type: ignore[attr-defined]
    return _derivatives(f, arrays, wanted, level)[0]
