"""Gradient of a convolution with respect to its weights.

ALGORITHM
    dw[o, i, kh, kw] = sum over n, oh, ow of x[n, oh*s + kh*d - p, ow*s + kw*d - p, i] * dy[n, oh, ow, o]
SCHEDULE
    A tile is MR inputs x NV vectors of outputs in registers (the forward tile with inputs as its pixels), reduced over the
    output positions. Units (group, block of outputs, kh, kw, inputs) are shared among the threads, so every weight has one
    owner and one order of summation. The images go by in chunks of rows that fit half of L2; each chunk meets all units
    of the thread, which keep their sums in the result between chunks.
    With few input channels (stems) a tile takes several neighbouring kw: together they are contiguous in x. Where some of
    them fall on padding, the edge of the row is done with the others alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.backends.cpu.kernels.shapes import Axis, Conv, forward_axes, split
from twofold.backends.cpu.kernels.tile import Operands, Tile, accumulate, flatten, shaped
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

UNROLL = 2


@dataclass(frozen=True)
class _Space:
    """Units of one code variant: ``inputs`` channels from ``first + k*inputs`` on and ``taps`` neighbouring kw."""

    first_block: int
    blocks: int
    outs: int
    first_input: int
    tiles: int
    inputs: int
    first_tap: int
    tap_groups: int
    taps: int


def weight_gradient(machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0) -> Kernel:
    """Kernel (x, dy, dw): ``dw`` in forward ``packed`` order (its padding is set to zero)."""
    k = KernelBuilder(machine, "conv_dw", ["x", "dy", "dw"])
    emitter = _Emitter(k.f, machine, conv, packed, ldx or conv.c, ldy or conv.o)
    spaces = _spaces(machine, conv, packed)
    for space in spaces:
        emitter.clear(space)
    rows = chunk_rows(machine, conv)
    chunks = -(-conv.oh // rows)
    with k.f.loop(0, conv.n * chunks) as chunk:
        image, part = k.f.divmod_chain(chunk.index, [conv.n, chunks])
        start = k.f.mul(part, rows)
        for space in spaces:
            emitter.units(space, image, start, k.f.imin(k.f.add(start, rows), conv.oh))
    return k.finish(flops=conv.flops, note=f"direct weight gradient, {rows} rows at a time")


def chunk_rows(machine: Machine, conv: Conv) -> int:
    """Output rows whose input and gradient fill half of L2."""
    row = 4 * (conv.w * conv.c * conv.stride[0] + conv.ow * conv.o)
    return max(1, min(conv.oh, machine.l2 // 2 // row))


def _spaces(machine: Machine, conv: Conv, packed: Packed) -> list[_Space]:
    _, h = forward_axes(conv)
    spaces = []
    for first, blocks, outs in packed.kinds():
        vectors = -(-outs // machine.lanes)
        most = machine.accumulators(vectors) // vectors
        together = _taps_together(h, conv.cg, most)
        for first_tap, tap_groups, taps in _runs(split_at(conv.kw, together)):
            for first_input, tiles, inputs in _runs(split(conv.cg, max(1, most // taps))):
                spaces.append(_Space(first, blocks, outs, first_input, tiles, inputs, first_tap, tap_groups, taps))
    return spaces


def split_at(total: int, size: int) -> list[int]:
    """``total`` in parts of ``size`` and a rest."""
    return [size] * (total // size) + ([total % size] if total % size else [])


def _runs(sizes: list[int]) -> list[tuple[int, int, int]]:
    """Equal neighbours as (start, how many, size)."""
    runs: list[tuple[int, int, int]] = []
    at = 0
    for size in sizes:
        if runs and runs[-1][2] == size:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, size)
        else:
            runs.append((at, 1, size))
        at += size
    return runs


def _taps_together(h: Axis, ins: int, most: int) -> int:
    """Neighbouring kw in one tile: as many as its inputs leave room for, if every row has positions where all are inside."""
    together = max(1, min(h.taps, most // ins))
    if together > 1 and any(_low(h, t) > _high(h, t + together - 1) for t in range(h.taps - together + 1)):
        return 1
    return together


def _low(h: Axis, tap: int) -> int:
    """First output whose tap is inside."""
    return min(h.outputs, max(0, -(-(-h.first - tap * h.spacing) // h.step)))


def _high(h: Axis, tap: int) -> int:
    """One past the last output whose tap is inside."""
    return max(0, min(h.outputs, (h.inputs - 1 - h.first - tap * h.spacing) // h.step + 1))


class _Emitter:
    def __init__(self, f: Function, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int):
        self.f, self.machine, self.conv, self.packed, self.ldx, self.ldy = f, machine, conv, packed, ldx, ldy
        self.v, self.h = forward_axes(conv)

    def _decode(self, space: _Space, unit: Index) -> tuple[Index, Index, Index, Index, Index]:
        f = self.f
        box = [self.conv.groups, space.blocks, self.conv.kh, space.tap_groups, space.tiles]
        group, block, kh, kw, tile = f.divmod_chain(unit, box)
        kw = f.add(f.mul(kw, space.taps), space.first_tap)
        return group, f.add(block, space.first_block), kh, kw, f.add(f.mul(tile, space.inputs), space.first_input)

    def _share(self, space: _Space) -> tuple[Index, Index]:
        total = self.conv.groups * space.blocks * self.conv.kh * space.tap_groups * space.tiles
        return self.f.share(total, self.f.arg("tid"), self.f.arg("n"))

    def _places(self, space: _Space, unit: tuple[Index, ...]) -> list[list[Value]]:
        """Where the tile's vectors lie in the result: [kw and input][vector]."""
        f, packed, lanes = self.f, self.packed, self.machine.lanes
        group, block, kh, kw, first = unit
        width = -(-space.outs // lanes) * lanes
        row = f.add(f.mul(f.add(f.mul(kh, packed.kw), kw), packed.ins), first)
        base = f.gep(f.arg("dw"), f.add(packed.panel(f, group, block), f.mul(row, width)))
        return [
            [f.gep(base, (t * packed.ins + i) * width + at) for at in range(0, width, lanes)]
            for t in range(space.taps)
            for i in range(space.inputs)
        ]

    def clear(self, space: _Space) -> None:
        """Set this thread's part of the result to zero."""
        f = self.f
        with f.loop(*self._share(space)) as loop:
            for row in self._places(space, self._decode(space, loop.index)):
                for place in row:
                    f.vstore(const(f.vec(), 0.0), place)

    def units(self, space: _Space, image: Index, start: Index, stop: Index) -> None:
        """Add the output rows [start, stop) of an image to all units of this thread."""
        f = self.f
        with f.loop(*self._share(space)) as loop:
            unit = self._decode(space, loop.index)
            places = self._places(space, unit)
            tile = [[f.vload(place) for place in row] for row in places]
            low, high = self._rows(unit[2], start, stop)
            with f.loop(low, high, carry=flatten(tile)) as row:
                inner = shaped(row.carried, len(tile[0]))
                row.carry(flatten(self._row(space, unit, image, row.index, inner)))
            for value, place in zip(row.results, flatten(places)):
                f.vstore(value, place)

    def _rows(self, kh: Index, start: Index, stop: Index) -> tuple[Index, Index]:
        """The rows of [start, stop) whose tap ``kh`` is inside the image."""
        low, high = self._inside(self.v, kh)
        return self.f.imax(start, low), self.f.imin(stop, high)

    def _inside(self, axis: Axis, tap: Index) -> tuple[Index, Index]:
        """The outputs [low, high) whose tap is inside, for a run-time tap."""
        f = self.f
        if axis.inside:
            return 0, axis.outputs
        base = f.add(axis.first, f.mul(tap, axis.spacing))
        short = f.imax(f.sub(0, base), 0)
        room = f.imax(f.sub(axis.inputs + axis.step - 1, base), 0)
        low = f.div(f.add(short, axis.step - 1), axis.step)
        return f.imin(low, axis.outputs), f.imin(f.div(room, axis.step), axis.outputs)

    def _row(self, space: _Space, unit: tuple[Index, ...], image: Index, row: Index, tile: Tile) -> Tile:
        """Add one output row."""
        f, conv, h = self.f, self.conv, self.h
        group, block, kh, kw, first = unit
        line = f.add(f.add(f.mul(row, self.v.step), self.v.first), f.mul(kh, self.v.spacing))
        column = f.add(f.mul(kw, h.spacing), h.first)
        pixel = f.add(f.mul(f.add(f.mul(image, conv.h), line), conv.w), column)
        channel = f.add(f.mul(group, conv.cg), first)
        x = f.gep(f.arg("x"), f.add(f.mul(pixel, self.ldx), channel))
        out_row = f.mul(f.add(f.mul(image, conv.oh), row), conv.ow)
        out_channel = f.dot([(group, conv.og), (block, self.packed.block)])
        dy = f.gep(f.arg("dy"), f.add(f.mul(out_row, self.ldy), out_channel))
        for low, high, taps in self._ranges(kw, space.taps):
            tile = self._range(space, x, dy, low, high, taps, tile)
        return tile

    def _ranges(self, kw: Index, taps: int) -> list[tuple[Index, Index, range]]:
        """Output columns as (low, high, which taps are inside): inside for all, and the edges for some."""
        bounds = [self._inside(self.h, self.f.add(kw, t)) for t in range(taps)]
        if self.h.inside:
            return [(0, self.h.outputs, range(taps))]
        lows, highs = [b[0] for b in bounds], [b[1] for b in bounds]
        left = [(lows[t], lows[t - 1], range(t, taps)) for t in range(taps - 1, 0, -1)]
        right = [(highs[t], highs[t - 1], range(t)) for t in range(taps - 1, 0, -1)]
        return [*left, (lows[0], highs[-1], range(taps)), *right]

    def _range(
        self, space: _Space, x: Value, dy: Value, low: Index, high: Index, taps: range, tile: Tile
    ) -> Tile:
        f, lanes = self.f, self.machine.lanes
        counts = tuple(min(lanes, space.outs - at) for at in range(0, space.outs, lanes))
        rows = [t * space.inputs + i for t in taps for i in range(space.inputs)]
        x = f.gep(x, f.mul(low, self.h.step * self.ldx))
        dy = f.gep(dy, f.mul(low, self.ldy))
        offsets = tuple(t * self.h.spacing * self.ldx + i for t in range(space.taps) for i in range(space.inputs))
        ops = Operands(x, dy, self.h.step * self.ldx, 1, self.ldy, counts, offsets)
        return accumulate(f, tile, ops, f.sub(high, low), rows, UNROLL)
