"""Batch norm in training: the statistics come out of the convolution that makes ``x`` (its kernel's epilogue), or of one
pass over ``x``; what is left, ``x * scale + shift``, fuses into whatever reads it.

Both gather sums of ``x - k``, ``k`` about where the channel lies, so that a large mean cancels nothing. With ``k`` d standard
deviations from the mean, the variance's relative error is some (1 + d**2) roundings of a float32 sum: below 1e-5 as a rule.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.loops import Accumulator, Buffer, Expr, Var, acc, const, constant, op, var
from twofold.backends.cpu.loops.expr import converted
from twofold.backends.cpu.lowering.steps import Placed
from twofold.base.dtypes import DType, float64
from twofold.ir import Node, Spec, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering


def _batch_norm_train(low: Lowering, node: Node) -> None:
    x, weight, bias = node.inputs
    y, average, variance = node.outputs
    mean, var_ = _moments(low, node, x)
    low.result(average, mean)
    low.result(variance, var_)
    spec, dtype = average.spec, average.dtype
    scale, shift = low.temporary(spec, "scale"), low.temporary(spec, "shift")
    gamma_at, beta_at, at = low.at(weight), low.at(bias), low.at(x)
    root = lambda i: op("sqrt", dtype, op("add", dtype, var_.at(i), const(dtype, node.attrs["eps"])))
    low.map(spec, scale, lambda i: op("divide", dtype, converted(gamma_at(i), dtype), root(i)), [node])
    moved = lambda i: op("multiply", dtype, mean.at(i), scale.at(i))
    low.map(spec, shift, lambda i: op("subtract", dtype, converted(beta_at(i), dtype), moved(i)), [node])

    def normalised(index: Any) -> Expr:
        channel = [index[1]]
        scaled = op("multiply", dtype, converted(at(index), dtype), scale.at(channel))
        return converted(op("add", dtype, scaled, shift.at(channel)), y.dtype)

    low.formula(node, y, normalised)


def _moments(low: Lowering, node: Node, x: Value) -> tuple[Placed, Placed]:
    """Mean and variance of every channel of ``x``. Those of a concatenation are its parts', each gathered once however
    many layers read it."""
    average, variance = node.outputs[1:]
    parts = low.homes.parts(x)
    if not parts:
        mean, var_ = low.allocate(average), low.allocate(variance)
        _gather(low, node, x, None, mean, var_)
        return mean, var_
    whole = _moments_of(low, parts[0][1].buffer, average.dtype)
    for part, slot in parts:
        if slot.offset not in whole.done:
            whole.done.add(slot.offset)
            _gather(low, node, part, slot, *(_channels(m, slot) for m in (whole.mean, whole.variance)))
    return _channels(whole.mean, low.places[x]), _channels(whole.variance, low.places[x])


@dataclass
class Moments:
    """Means and variances of the channels of one buffer of images, and the first channels of the parts that are there."""

    mean: Placed
    variance: Placed
    done: set[int] = field(default_factory=set)


def _moments_of(low: Lowering, buffer: Buffer, dtype: DType) -> Moments:
    """Where the means and variances of a concatenation's channels lie."""
    if buffer not in low.moments:
        channels = Spec((max(p.offset + p.shape[1] for p in low.homes.of.values() if p.buffer is buffer),), dtype)
        low.moments[buffer] = Moments(low.temporary(channels, "means"), low.temporary(channels, "variances"))
    return low.moments[buffer]


def _channels(moments: Placed, slot: Placed) -> Placed:
    """The piece of the moments that belongs to a slice of channels."""
    return replace(moments, shape=(slot.shape[1],), offset=slot.offset)


def _gather(low: Lowering, node: Node, x: Value, slot: Placed | None, mean: Placed, variance: Placed) -> None:
    """The moments of ``x`` (which lies in ``slot``, if given) into their places."""
    gathered = low.waiting.statistics(x) if slot is None or low.places.get(x) == slot else None
    if gathered is not None:
        _join(low, node, gathered, mean, variance)
    else:
        _pass(low, node, slot or _placed(low, x), mean, variance)


def _placed(low: Lowering, x: Value) -> Placed:
    return low.channels_last(x)[0] if x.ndim == 4 else low.placed(x, "its statistics are taken")


def _join(low: Lowering, node: Node, parts: Placed, mean: Placed, variance: Placed) -> None:
    """From the parts that a kernel wrote, [part][count, k, sum, squares][channel]; joined in float64."""
    channel, part = Var(parts.shape[2], "c"), Var(parts.shape[0], "p")
    row = lambda p, k: converted(parts.at([p, constant(k), var(channel)]), float64)
    shift = row(constant(0), 1)
    count, k, total, squares = (row(var(part), i) for i in range(4))
    apart = _op("subtract", k, shift)
    moved = _op("add", total, _op("multiply", count, apart))
    twice = _op("add", _op("add", total, total), _op("multiply", count, apart))
    raised = _op("add", squares, _op("multiply", apart, twice))
    _finish(low, node, [channel], [part], shift, moved, raised, mean, variance, float64)


def _pass(low: Lowering, node: Node, place: Placed, mean: Placed, variance: Placed) -> None:
    """One pass over an array in memory."""
    dims = [Var(d, "i") for d in place.shape]
    channel, rdims = dims[1], [d for i, d in enumerate(dims) if i != 1]
    dtype = mean.buffer.dtype
    shift = _about(place, channel, dtype)
    apart = _op("subtract", converted(place.at([var(d) for d in dims]), dtype), shift)
    _finish(low, node, [channel], rdims, shift, apart, _op("multiply", apart, apart), mean, variance, dtype)


def _about(place: Placed, channel: Var, dtype: DType) -> Expr:
    """About where a channel lies: the mean of eight of its values, at equal distances. One value may be an outlier, and its
    distance from the mean, in standard deviations, goes squared into the variance's rounding. (A power of two of values, so
    that the mean of equal ones is exactly that.)"""
    sizes = [d for i, d in enumerate(place.shape) if i != 1]
    counts = {1: (8,), 2: (4, 2)}.get(len(sizes), (2, 2, 2, *[1] * (len(sizes) - 3)))
    spread = [[d * k // n for k in range(n)] if d >= n else [0] for d, n in zip(sizes, counts)]
    found = [[constant(c) for c in corner] for corner in itertools.product(*spread)]
    values = [converted(place.at([at[0], var(channel), *at[1:]]), dtype) for at in found]
    shares = [_op("multiply", v, const(dtype, 1 / len(values))) for v in values]
    return functools.reduce(lambda a, b: _op("add", a, b), shares)


def _finish(
    low: Lowering, node: Node, dims: list[Var], rdims: list[Var], shift: Expr, value: Expr, square: Expr,
    mean: Placed, variance: Placed, dtype: DType,
) -> None:  # fmt: skip
    """The nest that adds up ``value`` and ``square`` (about ``shift``) and stores the moments."""
    zero, out = const(dtype, 0), mean.buffer.dtype
    count = const(dtype, math.prod(int(d) for i, d in enumerate(node.inputs[0].shape) if i != 1))
    totals = [Accumulator(dtype, zero, _op("add", acc(k, dtype), e), "add") for k, e in enumerate((value, square))]
    apart = _op("divide", acc(0, dtype), count)
    spread = _op("subtract", _op("divide", acc(1, dtype), count), _op("multiply", apart, apart))
    results = [
        (mean, converted(_op("add", shift, apart), out)),
        (variance, converted(_op("maximum", spread, zero), out)),
    ]
    low.reduce(dims, rdims, totals, results, [node])


def _op(name: str, a: Expr, b: Expr) -> Expr:
    return op(name, a.dtype, a, b)


NESTS: dict[str, Any] = {"batch_norm_train": _batch_norm_train}
