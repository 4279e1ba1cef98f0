"""Weights between their plain order (O, I, KH, KW) and the packed order of the kernels, as loop nests: where a vector would be
cut, or weights are computed on the way. ``kernels/repack.py`` does the others.

Both walk tiles of 16 inputs x all taps, so that what is read across and what is written along stay in the first cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.loops import (
    Affine,
    Buffer,
    Nest,
    Store,
    Var,
    const,
    floordiv,
    in_range,
    load,
    mod,
    select,
    var,
    with_guard,
)
from twofold.backends.cpu.loops.expr import both, converted
from twofold.backends.cpu.lowering.steps import At, Placed

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

TILE = 16  # inputs


def pack(low: Lowering, at: At, packed: Packed, ins: int, target: Buffer) -> None:
    """Nests that write ``target`` in packed order; the padding of the last block, and of an odd number of inputs (``ins``) in
    pairs, becomes zero. ``at`` gives a weight by its index: it may be computed on the way."""
    for first, count, outs in packed.kinds():
        width = -(-outs // packed.lanes) * packed.lanes
        group, block, tile, step, tap, lane = _variables(packed, count, width)
        inner = _inner(tile, step, packed.ins)
        row = var(tap) * packed.ins + inner
        address = _panel(packed, group, var(block) + first) + row * width + var(lane)
        stores = []
        for half in range(2 if packed.pairs else 1):
            number = inner * 2 + half if packed.pairs else inner
            inside = both(in_range(var(lane), 0, outs), in_range(number, 0, ins))
            weight = at(_index(packed, ins, group, var(block) + first, lane, number, tap))
            value = converted(with_guard(weight, inside), target.dtype)
            place = address * 2 + half if packed.pairs else address
            stores.append(Store(target, place, select(inside, value, const(target.dtype, 0))))
        low.nest(Nest([group, block, tile, tap, step, lane], stores), [], "pack weights")


def unpack(low: Lowering, source: Buffer, packed: Packed, target: Placed) -> None:
    """Nests that write ``target`` in the plain order."""
    for first, count, outs in packed.kinds():
        width = -(-outs // packed.lanes) * packed.lanes
        group, block, tile, step, tap, lane = _variables(packed, count, outs)
        inner = _inner(tile, step, packed.ins)
        row = var(tap) * packed.ins + inner
        place = _panel(packed, group, var(block) + first) + row * width + var(lane)
        value = converted(load(source, place), target.buffer.dtype)
        address = target.address(_index(packed, packed.ins, group, var(block) + first, lane, inner, tap))
        store = Store(target.buffer, address, value)
        low.nest(Nest([group, block, tile, lane, step, tap], [store]), [], "unpack weights")


def place(packed: Packed, index: Sequence[Affine]) -> Affine:
    """Where the weight at an index of (O, I, KH, KW) lies in an order of whole blocks."""
    out, inner, row, column = index
    tap = row * packed.kw + column
    panel = floordiv(out, packed.block) * packed.taps + tap
    return (panel * packed.ins + inner) * packed.block + mod(out, packed.block)


def _variables(packed: Packed, blocks: int, lanes: int) -> tuple[Var, ...]:
    tile = TILE if packed.ins % TILE == 0 else packed.ins
    sizes = (packed.groups, blocks, packed.ins // tile, tile, packed.taps, lanes)
    return tuple(Var(size) for size in sizes)


def _inner(tile: Var, step: Var, ins: int) -> Affine:
    return var(tile) * step.extent + var(step)


def _panel(packed: Packed, group: Var, block: Affine) -> Affine:
    return var(group) * packed.group_size + block * (packed.taps * packed.ins * packed.block)


def _index(packed: Packed, ins: int, group: Var, block: Affine, lane: Var, inner: Affine, tap: Var) -> list[Affine]:
    """The place in (O, I, KH, KW) of the weight of an output (``lane`` of ``block``) and an input (``inner``)."""
    out = block * packed.block + var(lane)
    outs = packed.outs
    if not packed.forward:
        out, inner, outs = inner, out, ins
    return [var(group) * outs + out, inner, floordiv(var(tap), packed.kw), mod(var(tap), packed.kw)]
