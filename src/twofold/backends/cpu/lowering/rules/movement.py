"""Movement ops as maps of indices; concat and constants, which need memory; barrier, which is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.loops import Affine, Expr, const, constant, floordiv, in_range, mod
from twofold.backends.cpu.loops.expr import TRUE, both, select, with_guard
from twofold.backends.cpu.lowering.concat import slices
from twofold.backends.cpu.lowering.rules.elementwise import broadcast_index
from twofold.backends.cpu.lowering.steps import At, row_strides
from twofold.ir import Node

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering


def reshaped(index: Sequence[Affine], shape: Sequence[int], source: Sequence[int]) -> tuple[Affine, ...]:
    """The index into ``source`` of the element at ``index`` of ``shape`` (the same elements in row-major order)."""
    if 0 in source:
        return (constant(0),) * len(source)
    flat = constant(0)
    for i, stride in zip(index, row_strides(shape)):
        flat = flat + i * stride
    out = []
    for d, (size, stride) in enumerate(zip(source, row_strides(source))):
        place = floordiv(flat, stride)
        out.append(mod(place, size) if d else place)
    return tuple(out)


def _reshape(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    return ats[0](reshaped(index, node.outputs[0].shape, node.inputs[0].shape))  # type: ignore[arg-type]


def _permute(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    out: list[Any] = [None] * len(index)
    for i, axis in zip(index, node.attrs["axes"]):
        out[axis] = i
    return ats[0](out)


def _broadcast(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    return ats[0](broadcast_index(index, node.inputs[0].shape))  # type: ignore[arg-type]


def _slice(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    return ats[0]([i * step + start for i, start, step in zip(index, node.attrs["starts"], node.attrs["steps"])])


def _flip(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    shape = node.inputs[0].shape
    return ats[0]([i * -1 + (int(shape[d]) - 1) if d in node.attrs["axes"] else i for d, i in enumerate(index)])


def _pad(node: Node, ats: Sequence[At], index: Sequence[Affine]) -> Expr:
    from twofold.backends.cpu.loops import from_index, op
    from twofold.base.dtypes import bool_, int64

    shape, dtype = node.inputs[0].shape, node.outputs[0].dtype
    fill = const(dtype, np.asarray(node.attrs["fill"]).astype(dtype.numpy))
    if 0 in shape:
        return fill
    inside, source = TRUE, []
    for i, size, (low, _), inner in zip(index, shape, node.attrs["widths"], node.attrs["interior"]):
        place = i - low
        inside = both(inside, in_range(place, 0, (size - 1) * (inner + 1) + 1))
        if inner:
            rest = mod(place, inner + 1)
            inside = both(inside, op("equal", bool_, from_index(rest, int64), const(int64, 0)))
            place = floordiv(place, inner + 1)
        source.append(place)
    return select(inside, with_guard(ats[0](source), inside), fill)


def _concat(low: Lowering, node: Node) -> None:
    """Every part writes its slice, unless it lies there already."""
    out = node.outputs[0]
    slots = low.homes.slots.get(node)
    target = low.homes.of[out] if slots else low.allocate(out)
    for v, slot in zip(node.inputs, slots or slices(target, node)):
        if low.places.get(v) == slot or slot in low.filled:
            continue
        if v not in low.places and low.homes.of.get(v) == slot:
            low.placed(v, "it is part of a concatenation", CHANNELS_LAST)
        else:
            low.map(v.spec, slot, low.at(v), [node])
        low.filled.add(slot)
    low.result(out, target)


def _constant(low: Lowering, node: Node) -> None:
    array, out = node.attrs["value"], node.outputs[0]
    if array.size == 1:
        number = const(out.dtype, array.reshape(-1)[0])
        low.formulas[out] = lambda index: number
    else:
        low.result(out, low.constant_array(array, out.spec))


def _barrier(low: Lowering, node: Node) -> None:
    for v, out in zip(node.inputs, node.outputs):
        if v in low.places:
            low.places[out] = low.places[v]
        else:
            low.result(out, low.placed(v, "a barrier keeps it"))


INLINE: dict[str, Any] = {
    "reshape": _reshape, "permute_dims": _permute, "broadcast_to": _broadcast, "slice": _slice, "flip": _flip, "pad": _pad,
}  # fmt: skip
VIEWS = frozenset(("reshape", "permute_dims", "broadcast_to", "slice", "flip", "detach", "identity"))
NESTS: dict[str, Any] = {"concat": _concat, "constant": _constant, "barrier": _barrier}
