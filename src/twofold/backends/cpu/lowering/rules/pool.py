"""Pools and their gradients by plain loops. The gradient of a maximum first finds each window's winner, then gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.loops import Accumulator, Affine, Expr, Var, acc, const, constant, from_index, op, var
from twofold.backends.cpu.loops.expr import converted, select
from twofold.backends.cpu.lowering.rules import native
from twofold.backends.cpu.lowering.rules.conv import back, guarded, tap, variables
from twofold.backends.cpu.lowering.rules.reduction import lowest
from twofold.backends.cpu.lowering.steps import Placed, row_strides
from twofold.base.dtypes import DType, bool_, int32, sum_dtype
from twofold.ir import Node, Spec, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering


def _padded(low: Lowering, node: Node, x: Value, n: Var, c: Var, p: list[Var], k: list[Var]) -> Expr:
    """The element under a tap; the least value where it falls on padding."""
    places, inside = tap(node, p, k, x.shape[2:])
    value = guarded(low.placed(x).at, [var(n), var(c), *places], inside)
    return select(inside, value, lowest(x.dtype))


def _max_pool(low: Lowering, node: Node) -> None:
    if native.pool_forward(low, node):
        return
    x, y = node.inputs[0], node.outputs[0]
    n, c, *p = out = variables(y.shape)
    k = variables(node.attrs["window"], "r")
    update = op("maximum", y.dtype, acc(0, y.dtype), _padded(low, node, x, n, c, p, k))
    _reduce(low, node, y, out, k, Accumulator(y.dtype, lowest(y.dtype), update))


def _reduce(
    low: Lowering, node: Node, y: Value, out: list[Var], rdims: list[Var], total: Accumulator, final: Any = None
) -> None:
    target = low.allocate(y)
    result = acc(0, total.dtype) if final is None else final(acc(0, total.dtype))
    low.reduce(out, rdims, [total], [(target, converted(result, y.dtype))], [node])
    low.result(y, target)


def _flat(k: Sequence[Var]) -> Affine:
    """The number of a tap, in row-major order."""
    total = constant(0)
    for v, stride in zip(k, row_strides([v.extent for v in k])):
        total = total + var(v) * stride
    return total


def _winners(low: Lowering, node: Node, x: Value, shape: Sequence[Any]) -> Placed:
    """int32 number of the first tap that holds each window's maximum (NaN counts as the largest)."""
    target = low.temporary(Spec(tuple(shape), int32), "winners")
    n, c, *p = out = variables(shape)
    k = variables(node.attrs["window"], "r")
    value, best, winner = _padded(low, node, x, n, c, p, k), acc(0, x.dtype), acc(1, int32)
    better = op("logical_not", bool_, op("less_equal", bool_, value, best))
    if x.dtype.is_floating:
        better = op("logical_and", bool_, better, op("equal", bool_, best, best))
    accumulators = [
        Accumulator(x.dtype, lowest(x.dtype), select(better, value, best)),
        Accumulator(int32, const(int32, 0), select(better, from_index(_flat(k), int32), winner)),
    ]
    low.reduce(out, k, accumulators, [(target, winner)], [node])
    return target


def _sum(low: Lowering, node: Node, out: list[Var], k: list[Var], term: Expr, final: Any = None) -> None:
    y = node.outputs[0]
    d = sum_dtype(y.dtype)
    total = Accumulator(d, const(d, 0), op("add", d, acc(0, d), converted(term, d)))
    _reduce(low, node, y, out, k, total, final)


def _max_grad(low: Lowering, node: Node) -> None:
    if native.pool_grad(low, node):
        return
    x, g = node.inputs
    winners = _winners(low, node, x, g.shape)
    n, c, *i = out = variables(x.shape)
    k = variables(node.attrs["window"], "r")
    places, there = back(node, i, k, g.shape[2:])
    index = [var(n), var(c), *places]
    won = op("equal", bool_, guarded(winners.at, index, there), from_index(_flat(k), int32))
    there = op("logical_and", bool_, there, won)
    term = guarded(low.placed(g).at, index, there)
    _sum(low, node, out, k, term)


def _max_pick(low: Lowering, node: Node) -> None:
    x, c_value = node.inputs
    y = node.outputs[0]
    winners = _winners(low, node, x, y.shape)
    n, c, *p = out = variables(y.shape)
    k = variables(node.attrs["window"], "r")
    places, inside = tap(node, p, k, x.shape[2:])
    won = op("equal", bool_, winners.at([var(v) for v in out]), from_index(_flat(k), int32))
    term = select(won, guarded(low.placed(c_value).at, [var(n), var(c), *places], inside), const(y.dtype, 0))
    _sum(low, node, out, k, term)


def _count(node: Node, places: Sequence[Affine], sizes: Sequence[Any], dtype: DType) -> Expr:
    """How many positions a window averages over."""
    total = const(int32, 1)
    rows = zip(places, sizes, node.attrs["window"], node.attrs["strides"], node.attrs["padding"])
    for p, size, k, s, (low, high) in rows:
        first, last = (-low, int(size) + high) if node.attrs["include_pad"] else (0, int(size))
        start = p * s - low
        end = start + k
        if start.range[0] >= first and end.range[1] <= last:
            part = const(int32, k)
        else:
            upper = op("minimum", int32, from_index(end, int32), const(int32, last))
            part = op("subtract", int32, upper, op("maximum", int32, from_index(start, int32), const(int32, first)))
        total = op("multiply", int32, total, part)
    return op("cast", dtype, total)


def _avg_pool(low: Lowering, node: Node) -> None:
    if native.pool_forward(low, node):
        return
    x, y = node.inputs[0], node.outputs[0]
    n, c, *p = out = variables(y.shape)
    k = variables(node.attrs["window"], "r")
    places, inside = tap(node, p, k, x.shape[2:])
    d = sum_dtype(y.dtype)
    count = _count(node, [var(v) for v in p], x.shape[2:], d)
    term = guarded(low.placed(x).at, [var(n), var(c), *places], inside)
    _sum(low, node, out, k, term, lambda total: op("divide", d, total, count))


def _avg_grad(low: Lowering, node: Node) -> None:
    if native.pool_grad(low, node):
        return
    g, y = node.inputs[0], node.outputs[0]
    n, c, *i = out = variables(y.shape)
    k = variables(node.attrs["window"], "r")
    places, there = back(node, i, k, g.shape[2:])
    d = sum_dtype(y.dtype)
    count = _count(node, places, y.shape[2:], d)
    value = converted(guarded(low.placed(g).at, [var(n), var(c), *places], there), d)
    term = select(there, op("divide", d, value, count), const(d, 0))
    _sum(low, node, out, k, term)


NESTS: dict[str, Any] = {
    "max_pool": _max_pool, "max_pool_grad": _max_grad, "max_pool_pick": _max_pick, "avg_pool": _avg_pool,
    "avg_pool_grad": _avg_grad,
}  # fmt: skip
