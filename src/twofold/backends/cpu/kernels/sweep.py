"""One sweep over all outputs of a pass: units shared among the threads, rows, tiles; how a tile reduces over the taps.

A unit is (group, block of outputs, image, block of rows). It walks its rows, a row its tiles of MR pixels x NV vectors, and a
tile reduces over (kh, kw, i) in registers, asking for the weights that come next. ``pointwise.Pointwise`` reduces passes of a
single tap in blocks of inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import slab
from twofold.backends.cpu.kernels.axes import clip, segments
from twofold.backends.cpu.kernels.shapes import Pass
from twofold.backends.cpu.kernels.tile import (
    LINE,
    Fetch,
    Operands,
    accumulate,
    flatten,
    most_pixels,
    passing,
    shaped,
    zeros,
)
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value
from twofold.backends.cpu.machine import Machine

UNROLL = 2  # steps of the innermost loop written out, at most
ROUND = 32  # multiply-adds written out, if one step has not more: with two steps of 14x2 LLVM runs short of registers
MOST_ROWS = 8
UNITS = 64  # of a pass, at least: to be shared evenly among many threads
AHEAD = 4096  # bytes: how far before their use weights are asked for
END = 48  # steps that a pixel's vector takes to be stored, at the speed of memory
READ_AGAIN = 0.25  # what reading the weights once more for each row costs, by its products


def row_block(machine: Machine, one: Pass, packed: Packed) -> int:
    """Rows in a unit: more reuse of weights with more, but their input in a quarter of L2, enough units for many threads,
    and a last block that is not much smaller than the others, or else the thread that does it waits."""
    others = packed.groups * (packed.whole + (1 if packed.rest else 0)) * one.n

    def fits(rows: int) -> bool:
        enough = others * -(-one.v.outputs // rows) >= UNITS
        return rows == 1 or (enough and _near(machine, one, packed, rows))

    def cost(rows: int) -> float:
        missing = -one.v.outputs % rows / max(1, one.v.outputs)
        return missing + READ_AGAIN / rows

    return min(filter(fits, range(1, min(MOST_ROWS, max(1, one.v.outputs)) + 1)), key=cost)


def _near(machine: Machine, one: Pass, packed: Packed, rows: int) -> bool:
    """Whether the input of ``rows`` rows is small: a quarter of L2 (half of it, if only one tap reads it), or three quarters
    of L1 as a slab."""
    if slab.suits(one, packed):
        return slab.Slab(one, packed.ins, rows).bytes <= machine.l1 * 3 // 4
    return rows * _input_bytes(one, 1) <= machine.l2 // (2 if one.v.taps * one.h.taps == 1 else 4)


def slab_of(machine: Machine, one: Pass, packed: Packed) -> slab.Slab | None:
    """The slab that a unit of a pass goes through, if it does."""
    return slab.Slab(one, packed.ins, row_block(machine, one, packed)) if slab.suits(one, packed) else None


def _input_bytes(one: Pass, rows: int) -> int:
    """Bytes of input that ``rows`` rows of the output read, each pixel counted once."""
    lines = min(one.v.inputs, rows * min(one.v.step, one.v.taps))
    return 4 * one.ldx * lines * min(one.h.inputs, one.h.outputs * min(one.h.step, one.h.taps))


def weights_outside(machine: Machine, one: Pass, packed: Packed, rows: int) -> bool:
    """Which loop is outside: blocks of weights (all images pass by each) or rows (all weights pass by each).

    The one that moves fewer bytes from beyond L2. Weights that fit half of L2 stay there.
    """
    weights = 4 * packed.group_size
    blocks = packed.whole + (1 if packed.rest else 0)
    by_rows = weights if weights <= machine.l2 // 2 else weights * one.n * -(-one.v.outputs // rows)
    return blocks * one.n * _input_bytes(one, one.v.outputs) < by_rows


class Sweep:
    """Emits one pass; see the module's schedule."""

    def __init__(
        self, f: Function, machine: Machine, one: Pass, packed: Packed, epilogue: ep.Epilogue, part: int, scratch: int
    ):
        self.f, self.machine, self.one, self.packed, self.epilogue = f, machine, one, packed, epilogue
        self.rows = row_block(machine, one, packed)
        self.first_part, self.scratch = part, scratch
        self.slab = slab_of(machine, one, packed)
        self.read = self.slab.read if self.slab else one  # where and how a tile reads
        self.weights_outside = weights_outside(machine, one, packed, self.rows)
        # groups of one block each, which L1 keeps while their rows pass by: the next one's weights are asked for meanwhile
        self.asks_groups = packed.groups > 1 and packed.outs <= packed.block and 4 * packed.group_size <= machine.l1

    def units(self, count: int, outs: int) -> tuple[int, int]:
        """How many units ``count`` blocks of ``outs`` outputs are, and the work of each (in steps of a pixel's vector: the
        phases of a strided gradient have 1 to 4 taps of a 3x3 kernel)."""
        one = self.one
        units = self.packed.groups * count * one.n * -(-one.v.outputs // self.rows)
        steps = one.v.taps * one.h.taps * self.packed.ins + END
        return units, self.rows * one.h.outputs * -(-outs // self.machine.lanes) * steps

    def emit(self, first: int, count: int, outs: int, part: tuple[Index, Index]) -> None:
        """A ``part`` of the units of one kind of block: ``count`` blocks of ``outs`` outputs from block ``first`` on."""
        f, one, packed = self.f, self.one, self.packed
        lanes = self.machine.lanes
        self.counts = [min(lanes, outs - at) for at in range(0, outs, lanes)]
        self.width = len(self.counts) * lanes
        most = most_pixels(self.machine, len(self.counts), 4 * self.read.ldx * self.read.h.step)
        self.segments = segments(self.read.h, most)
        blocks_of_rows = -(-one.v.outputs // self.rows)
        with f.loop(*part) as unit:
            if self.slab:  # neighbouring groups share cache lines
                image, rows, group, block = f.divmod_chain(unit.index, [one.n, blocks_of_rows, packed.groups, count])
            elif self.weights_outside:
                group, block, image, rows = f.divmod_chain(unit.index, [packed.groups, count, one.n, blocks_of_rows])
            else:
                group, image, rows, block = f.divmod_chain(unit.index, [packed.groups, one.n, blocks_of_rows, count])
            self._unit(group, f.add(block, first), image, rows, blocks_of_rows)

    top: Index  # the output row that lies first in what ``x`` points to

    def _unit(self, group: Index, block: Index, image: Index, rows: Index, blocks_of_rows: int) -> None:
        f, one, packed = self.f, self.one, self.packed
        size = one.v.inputs * one.h.inputs * one.ldx
        self.x = f.gep(f.arg("x"), f.add(one.x_first, f.dot([(image, size), (group, packed.ins)])))
        start, self.top = f.mul(rows, self.rows), 0
        self.start = start
        if self.slab:
            target = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
            self.slab.copy(f, self.x, target, start)
            self.x, self.top = target, start
        self.w = f.gep(f.arg("w"), packed.panel(f, group, block))
        self.channel = f.dot([(group, packed.outs), (block, packed.block)])
        self.part = f.add(self.first_part, f.add(f.mul(image, blocks_of_rows), rows))
        for j, count in enumerate(self.counts):
            for step in self.epilogue:
                step.begin(f, self.part, f.add(self.channel, j * self.machine.lanes), count)
        stop = f.imin(f.add(start, self.rows), one.v.outputs) if one.v.outputs % self.rows else f.add(start, self.rows)
        self.image = image
        self._walk(block, start, stop)

    def _walk(self, block: Index, start: Index, stop: Index) -> None:
        """All rows of a unit."""
        with self.f.loop(start, stop) as row:
            self._row(self.image, row.index)

    def _row(self, image: Index, row: Value) -> None:
        f, one = self.f, self.one
        self.row = row
        self.taps = (0, one.v.taps) if self.slab else clip(f, one.v, row)
        line = f.add(f.mul(image, one.v.extent), f.add(one.v.out_first, f.mul(row, one.v.out_step)))
        self.pixel = f.add(one.pixel_first, f.add(f.mul(line, one.h.extent), one.h.out_first))
        for start, size, count in self.segments:
            if count == 1:
                self._tile(start, size, start)
            else:
                with f.loop(0, count) as tile:
                    self._tile(f.add(start, f.mul(tile.index, size)), size, start)

    def _tile(self, at: Index, size: int, example: int) -> None:
        """``size`` pixels from output ``at`` on; ``example`` is a fixed position with the same taps inside."""
        f, vectors = self.f, len(self.counts)
        tile = zeros(f, size, vectors)
        low, high = self.taps
        if (low, high) == (0, 1):
            tile = self._tap_row(tile, 0, at, size, example)
        else:
            with f.loop(low, high, carry=flatten(tile)) as tap:
                inner = shaped(tap.carried, vectors)
                tap.carry(flatten(self._tap_row(inner, tap.index, at, size, example)))
            tile = shaped(tap.results, vectors)
        self._store(tile, at, size)

    def _tap_row(self, tile, tap: Index, at: Index, size: int, example: int):
        """Add the products of one vertical tap."""
        f, one, ins = self.f, self.read, self.packed.ins
        column = f.mul(f.add(f.mul(at, one.h.step), one.h.first), one.ldx)
        row = f.sub(self.row, self.top)
        line = f.add(f.add(f.mul(row, one.v.step), one.v.first), f.mul(tap, one.v.spacing))
        x = f.gep(self.x, f.add(f.mul(line, one.h.inputs * one.ldx), column))
        kernel_row = f.add(one.v.kernel, f.mul(tap, one.v.kernel_step))
        w = f.gep(self.w, f.mul(kernel_row, self.packed.kw * ins * self.width))
        counts = (self.machine.lanes,) * len(self.counts)
        ops = Operands(x, w, 1, one.h.step * one.ldx, self.width, counts, pairs=self.packed.pairs)
        everywhere = [p for p in range(size) if all(one.h.valid(example + p, t) for t in range(one.h.taps))]
        joined = one.h.spacing == one.h.kernel_step == 1 and one.h.kernel == 0 and ins == one.ldx
        unroll = min(UNROLL, max(1, ROUND // (size * len(self.counts))))
        if joined and len(everywhere) == size:  # (kw, i) is contiguous in x and in w: one loop
            self._ask_ends(at, size, tap, 0, 1)
            return accumulate(f, tile, ops, one.h.taps * ins, range(size), unroll, self._next_weights(w, unroll))
        for t in range(one.h.taps):
            pixels = [p for p in range(size) if one.h.valid(example + p, t)]
            kernel = one.h.kernel + t * one.h.kernel_step
            self._ask_ends(at, size, tap, t, one.h.taps)
            if pixels:
                moved = replace(ops, x=f.gep(x, t * one.h.spacing * one.ldx), w=f.gep(w, kernel * ins * self.width))
                tile = accumulate(f, tile, moved, ins, pixels, unroll, self._next_weights(moved.w, unroll))
        return tile

    def _next_weights(self, w: Value, unroll: int) -> Fetch | None:
        """Prefetches the weights that come AHEAD bytes after those of a step, where L1 does not keep a block's."""
        kept = 4 * self.packed.taps * self.packed.ins * self.width <= self.machine.l1
        return None if kept else passing(self.f, w, self.width, unroll, AHEAD // 4)

    def _ask_ends(self, at: Index, size: int, tap: Index, number: int, taps: int) -> None:
        """Prefetches what the end of a tile reads and writes: an even share of its pixels with each vertical tap, and of their
        lines before each of its ``taps`` loops. Within these it would cost instructions in every round (3x3/2 of 512 channels:
        4 %)."""
        f, one = self.f, self.one
        share, streams = -(-size // one.v.taps), ep.streams(self.epilogue, one.ldy)
        first = f.add(f.add(self.pixel, f.mul(at, one.h.out_step)), f.mul(tap, share * one.h.out_step))
        lines = [(p, line) for p in range(share) for line in range(0, self.width, LINE)]
        for p, line in lines[number::taps]:
            for stream in streams:
                stream.fetch(f, f.add(first, p * one.h.out_step), f.add(self.channel, line))
        if self.asks_groups:
            self._ask_group(at, size, f.add(f.mul(tap, taps), number), one.v.taps * taps)

    def _ask_group(self, at: Index, size: int, number: Index, parts: int) -> None:
        """Prefetches one of so many ``parts`` of a tile's share of the next group's weights."""
        f, one, packed = self.f, self.one, self.packed
        each = -(-packed.group_size // LINE // (self.rows * one.h.outputs))
        share = -(-size * each // parts)
        pixel = f.add(f.mul(f.sub(self.row, self.start), one.h.outputs), at)
        place = f.add(f.mul(f.add(f.mul(pixel, each), f.mul(number, share)), LINE), packed.group_size)
        for k in range(share):
            f.prefetch(f.gep(self.w, f.add(place, k * LINE)), 2)

    def _store(self, tile, at: Index, size: int) -> None:
        f, one = self.f, self.one
        first = f.add(self.pixel, f.mul(at, one.h.out_step))
        places = [f.add(first, p * one.h.out_step) for p in range(size)]
        y = ep.element(self.epilogue)
        base = f.gep(f.arg("y"), f.add(f.mul(first, one.ldy), self.channel), y)
        columns = self._columns(tile)
        for j, count in enumerate(self.counts):
            channel = f.add(self.channel, j * self.machine.lanes)
            sites = [ep.Site(pixel, channel, count) for pixel in places]
            with f.crowded():
                values = ep.finish_column(f, self.epilogue, columns[j](), sites, self.part)
            for p, value in enumerate(values):
                f.vstore(value, f.gep(base, p * one.h.out_step * one.ldy + j * self.machine.lanes, y), count)

    def _columns(self, tile) -> list[Callable[[], list[Value]]]:
        """The columns of a tile, one after the other. While sums are gathered of one, which takes registers, the others wait in
        memory. (LLVM kept 14 of 28 accumulators in the stack in its loop: 1x1 of 512 inputs had 87 % of the peak, not 97.)"""
        columns = [[row[j] for row in tile] for j in range(len(self.counts))]
        wait = any(step.gathers for step in self.epilogue)
        return [self.f.aside(column) if wait and j else functools.partial(list, column) for j, column in enumerate(columns)]
