"""Weights between their plain order (O, I, KH, KW) and the packed order of the kernels, as loop nests.

Both walk tiles of 16 inputs x all taps, so that what is read across and what is written along stay in the first cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.loops import Affine, Buffer, Nest, Store, Var, const, in_range, load, select, var, with_guard
from twofold.backends.cpu.loops.expr import both, converted

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

TILE = 16  # inputs


def pack(low: Lowering, source: Buffer, offset: int, packed: Packed, ins: int, target: Buffer) -> None:
    """Nests that write ``target`` in packed order; the padding of the last block, and of an odd number of inputs (``ins``) in
    pairs, becomes zero."""
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
            plain = _plain(packed, ins, group, var(block) + first, lane, number, tap) + offset
            value = converted(with_guard(load(source, plain), inside), target.dtype)
            place = address * 2 + half if packed.pairs else address
            stores.append(Store(target, place, select(inside, value, const(target.dtype, 0))))
        low.nest(Nest([group, block, tile, tap, step, lane], stores), [], "pack weights")


def unpack(low: Lowering, source: Buffer, packed: Packed, target: Buffer) -> None:
    """Nests that write ``target`` in the plain order."""
    for first, count, outs in packed.kinds():
        width = -(-outs // packed.lanes) * packed.lanes
        group, block, tile, step, tap, lane = _variables(packed, count, outs)
        inner = _inner(tile, step, packed.ins)
        row = var(tap) * packed.ins + inner
        value = converted(load(source, _panel(packed, group, var(block) + first) + row * width + var(lane)), target.dtype)
        address = _plain(packed, packed.ins, group, var(block) + first, lane, inner, tap)
        low.nest(Nest([group, block, tile, lane, step, tap], [Store(target, address, value)]), [], "unpack weights")


def _variables(packed: Packed, blocks: int, lanes: int) -> tuple[Var, ...]:
    tile = TILE if packed.ins % TILE == 0 else packed.ins
    sizes = (packed.groups, blocks, packed.ins // tile, tile, packed.taps, lanes)
    return tuple(Var(size) for size in sizes)


def _inner(tile: Var, step: Var, ins: int) -> Affine:
    return var(tile) * step.extent + var(step)


def _panel(packed: Packed, group: Var, block: Affine) -> Affine:
    return var(group) * packed.group_size + block * (packed.taps * packed.ins * packed.block)


def _plain(packed: Packed, ins: int, group: Var, block: Affine, lane: Var, inner: Affine, tap: Var) -> Affine:
    """Where the weight of an output (``lane`` of ``block``) and an input (``inner``) lies in (O, I, KH, KW)."""
    out = block * packed.block + var(lane)
    if not packed.forward:
        out, inner = inner, out
    outs, ins = (packed.outs, ins) if packed.forward else (ins, packed.outs)
    row = (var(group) * outs + out) * ins + inner
    return row * packed.taps + var(tap)
