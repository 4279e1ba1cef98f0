"""Convolution and its gradients by plain loops, in any number of dimensions, with strides, dilation and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.loops import Affine, Expr, Var, acc, const, floordiv, from_index, in_range, mod, op, var
from twofold.backends.cpu.loops.expr import TRUE, both, converted, select, with_guard
from twofold.backends.cpu.lowering.rules import native
from twofold.backends.cpu.lowering.rules.matmul import product_sum
from twofold.backends.cpu.lowering.steps import At
from twofold.base.dtypes import bool_, int64
from twofold.ir import Node

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering


def variables(shape: Sequence[Any], name: str = "i") -> list[Var]:
    """A loop variable for each size."""
    return [Var(int(d), name) for d in shape]


def tap(node: Node, out: Sequence[Var], kernel: Sequence[Var], sizes: Sequence[Any]) -> tuple[list[Affine], Expr]:
    """Where an output reads for a kernel position, and whether that lies inside the input."""
    places, inside = [], TRUE
    strides, padding = node.attrs["strides"], node.attrs["padding"]
    dilation = node.attrs.get("dilation") or (1,) * len(strides)
    for o, k, size, s, (low, _), d in zip(out, kernel, sizes, strides, padding, dilation):
        place = var(o) * s + var(k) * d - low
        inside = both(inside, in_range(place, 0, int(size)))
        places.append(place)
    return places, inside


def back(node: Node, position: Sequence[Var], kernel: Sequence[Var], sizes: Sequence[Any]) -> tuple[list[Affine], Expr]:
    """The output that reads an input position through a kernel position, and whether there is one."""
    places, there = [], TRUE
    strides, padding = node.attrs["strides"], node.attrs["padding"]
    dilation = node.attrs.get("dilation") or (1,) * len(strides)
    for i, k, size, s, (low, _), d in zip(position, kernel, sizes, strides, padding, dilation):
        place = var(i) + low - var(k) * d
        if s > 1:
            there = both(there, op("equal", bool_, from_index(mod(place, s), int64), const(int64, 0)))
        place = floordiv(place, s)
        there = both(there, in_range(place, 0, int(size)))
        places.append(place)
    return places, there


def guarded(at: At, index: Sequence[Affine], inside: Expr) -> Expr:
    """The element, or 0 where it is not inside."""
    e = with_guard(at(index), inside)
    return e if e.kind == "load" else select(inside, e, const(e.dtype, 0))


def _finish(low: Lowering, node: Node, out: list[Var], rdims: list[Var], a: Expr, b: Expr) -> None:
    y = node.outputs[0]
    target = low.allocate(y)
    total = product_sum(y.dtype, a, b)
    low.reduce(out, rdims, [total], [(target, converted(acc(0, total.dtype), y.dtype))], [node])
    low.result(y, target)


def _empty(low: Lowering, node: Node) -> bool:
    """Nothing to sum: zeros."""
    y = node.outputs[0]
    if all(0 not in v.shape for v in node.inputs):
        return False
    zero, target = const(y.dtype, 0), low.allocate(y)
    low.map(y.spec, target, lambda index: zero, [node])
    low.result(y, target)
    return True


def _conv(low: Lowering, node: Node) -> None:
    if native.conv(low, node) or _empty(low, node):
        return
    x, w = node.inputs
    n, o, *p = out = variables(node.outputs[0].shape)
    c, *k = rdims = variables(w.shape[1:], "r")
    places, inside = tap(node, p, k, x.shape[2:])
    per_group = int(w.shape[0]) // node.attrs["groups"]
    channel = floordiv(var(o), per_group) * c.extent + var(c)
    a = guarded(low.placed(x).at, [var(n), channel, *places], inside)
    _finish(low, node, out, rdims, a, low.placed(w).at([var(o), var(c), *map(var, k)]))


def _input_grad(low: Lowering, node: Node) -> None:
    if native.input_grad(low, node) or _empty(low, node):
        return
    g, w = node.inputs
    n, c, *i = out = variables(node.outputs[0].shape)
    groups = node.attrs["groups"]
    o, *k = rdims = variables((int(w.shape[0]) // groups, *w.shape[2:]), "r")
    places, there = back(node, i, k, g.shape[2:])
    per_group = c.extent // groups
    channel = floordiv(var(c), per_group) * o.extent + var(o)
    a = guarded(low.placed(g).at, [var(n), channel, *places], there)
    _finish(low, node, out, rdims, a, low.placed(w).at([channel, mod(var(c), per_group), *map(var, k)]))


def _weight_grad(low: Lowering, node: Node) -> None:
    if native.weight_grad(low, node) or _empty(low, node):
        return
    x, g = node.inputs
    o, c, *k = out = variables(node.outputs[0].shape)
    n, *p = rdims = variables((g.shape[0], *g.shape[2:]), "r")
    places, inside = tap(node, p, k, x.shape[2:])
    per_group = o.extent // node.attrs["groups"]
    channel = floordiv(var(o), per_group) * c.extent + var(c)
    a = guarded(low.placed(x).at, [var(n), channel, *places], inside)
    _finish(low, node, out, rdims, a, low.placed(g).at([var(n), var(o), *map(var, p)]))


NESTS: dict[str, Any] = {"conv": _conv, "conv_input_grad": _input_grad, "conv_weight_grad": _weight_grad}
