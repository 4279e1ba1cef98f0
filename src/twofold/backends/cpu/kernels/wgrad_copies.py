"""The copies that a weight gradient (``wgrad.py``) works on: strips of x with the padding as zeros, strips of dy.

Images of bfloat16 are copied as pairs of pixels that neighbouring outputs meet, for dot products: of dy every pixel is in
one pair, of x as well if the kernel is one column wide; else each column of x is in two, as the first and as the second.
In a row of an odd number of outputs the last pair counts half.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from twofold.backends.cpu.kernels import strips
from twofold.backends.cpu.kernels.wgrad_plan import Chunk, Plan, Slab
from twofold.backends.cpu.llvm import Index, Value, const

GROUP = 8  # pixels of a strip copied together


@dataclass(frozen=True)
class Source:
    """Where the pixels of a strip are read, and the second ones of its pairs; None where they are zeros."""

    first: Value | None = None
    second: Value | None = None

    def where(self, inside: tuple[bool, bool]) -> Source:
        """With zeros for what does not lie inside the image."""
        return Source(self.first if inside[0] else None, self.second if inside[1] else None)


class Copies(Plan):
    """Emits them."""

    def _copy_x(self, slab: Slab, at: Chunk, channel: Index) -> None:
        """What the chunk reads of the slab from ``channel`` on, as strips, padding included."""
        f, conv = self.f, self.conv
        steps = [stride // copied for stride, copied in zip(conv.stride, self.strides)]
        columns = self._column_runs(steps[1])
        top = f.sub(f.mul(at.row, conv.stride[0]), conv.pad[0][0])
        with f.loop(0, self.images * self.in_rows) as loop:
            which, line = f.divmod_chain(loop.index, [self.images, self.in_rows])
            source_line = f.add(top, f.mul(line, steps[0]))
            start = f.mul(f.add(f.mul(f.add(at.image, which), conv.h), source_line), conv.w)
            first = f.add(f.mul(f.sub(start, conv.pad[1][0]), self.ldx), channel)
            source = Source(*(f.gep(f.arg("x"), f.add(first, more), self.element) for more in (0, self._partner(steps[1]))))
            place = f.mul(loop.index, self.in_columns)

            def copy() -> list[Value]:
                for low, high, inside in columns:
                    self._columns(slab, source.where(inside), place, low, high, self.every * steps[1] * self.ldx)
                return []

            def clear() -> list[Value]:
                self._columns(slab, Source(), place, 0, self.in_columns, 0)
                return []

            if conv.kh == 1 and conv.pad[0] == (0, 0) and conv.oh % self.rows == 0:
                copy()
            else:
                f.choose(f.icmp("ult", f.index(source_line), conv.h), copy, clear)

    def _partner(self, step: int) -> int:
        """How far from a pixel of x the second of its pair lies; columns are copied ``step`` apart."""
        return self.strides[1] * step * self.ldx

    def _column_runs(self, step: int) -> list[tuple[int, int, tuple[bool, bool]]]:
        """The columns of a strip as runs [low, high) and whether the first and the second of their pairs lie in the image."""
        conv, found, at = self.conv, [], 0
        column = lambda i, k: (i * self.every + k * self.strides[1]) * step - conv.pad[1][0]
        inside = [tuple(0 <= column(i, k) < conv.w for k in range(2)) for i in range(self.in_columns)]
        for both, same in itertools.groupby(inside if self.pairs else [(first, False) for first, _ in inside]):
            count = len(list(same))
            found.append((at, at + count, both))
            at += count
        return found

    def _columns(self, slab: Slab, source: Source, place: Index, low: int, high: int, step: int) -> None:
        """Columns [low, high) of all strips: ``step`` elements apart in ``source``."""
        f = self.f
        whole = low + (high - low) // GROUP * GROUP
        if low < whole:
            with f.loop(low, whole, GROUP) as column:
                self._pixels(slab, source, place, column.index, GROUP, step)
        if whole < high:
            self._pixels(slab, source, place, whole, high - whole, step)

    def _pixels(self, slab: Slab, source: Source, place: Index, column: Index, pixels: int, step: int) -> None:
        """``pixels`` neighbouring columns of all strips."""
        f = self.f
        for kind in self._strips(slab):
            with f.loop(0, slab.groups * kind.count) as strip:
                group, number = f.divmod_chain(strip.index, [slab.groups, kind.count])
                channel = f.dot([(group, slab.channels), (number, kind.inputs), (1, kind.first)])
                target = f.dot([(channel, self.x_plane), (f.add(place, column), kind.inputs), (1, self.x_at)])
                begin = f.dot([(column, step), (channel, 1)])
                first, second = (s and f.gep(s, begin, self.element) for s in (source.first, source.second))
                if self.pairs:
                    strips.copy_pairs(f, first, second, f.gep(self.own, target), pixels, kind.inputs, step)
                else:
                    strips.copy(f, first, f.gep(self.own, target), pixels, kind.inputs, step)

    def _each_pixel(self, rows: Index, body: Callable[[Index, Index, bool], None]) -> None:
        """``body(pixel of dy, its place in a strip, whether alone)`` for every pixel, or first one of a pair, of ``rows``."""
        f, step = self.f, 2 if self.pairs else 1
        if not self.odd:
            with f.loop(0, f.mul(rows, self.y_columns)) as pixel:
                body(f.mul(pixel.index, step), pixel.index, False)
            return
        with f.loop(0, rows) as row:
            start, place = f.mul(row.index, self.conv.ow), f.mul(row.index, self.y_columns)
            with f.loop(0, self.y_columns - 1) as column:
                body(f.add(start, f.mul(column.index, step)), f.add(place, column.index), False)
            body(f.add(start, self.conv.ow - 1), f.add(place, self.y_columns - 1), True)

    def _copy_outs(self, source: Value, target: Value, outs: int, alone: bool) -> None:
        """A block of outputs of one pixel of dy (or of it and the next, as pairs), zeros beyond the last output."""
        f, lanes = self.f, self.machine.lanes
        for lane in range(0, outs, lanes):
            count, place = min(lanes, outs - lane), f.gep(source, lane, self.element)
            value = f.vload(place, count, self.element)
            if self.pairs:
                after = f.gep(place, self.ldy, self.element)
                value = f.paired(value, const(value.type, 0) if alone else f.vload(after, count, self.element))
            f.vstore(value, f.gep(target, lane))

    def _copy_dy(self, source: Value, strip: Value, rows: Index, outs: int) -> None:
        """A block of outputs of the chunk's pixels as a strip."""
        f, width = self.f, -(-outs // self.machine.lanes) * self.machine.lanes

        def copy(pixel: Index, place: Index, alone: bool) -> None:
            begin = f.gep(source, f.mul(pixel, self.ldy), self.element)
            self._copy_outs(begin, f.gep(strip, f.mul(place, width)), outs, alone)

        self._each_pixel(rows, copy)

    def _copy_groups(self, slab: Slab, source: Value, rows: Index) -> None:
        """All outputs of a slab of whole groups, pixel by pixel: several groups share a line."""
        f, packed, lanes = self.f, self.packed, self.machine.lanes

        def copy(pixel: Index, place: Index, alone: bool) -> None:
            with f.loop(0, slab.groups) as group:
                begin = f.gep(source, f.dot([(pixel, self.ldy), (group.index, self.conv.og)]), self.element)
                for first, count, outs in packed.kinds():
                    width = -(-outs // lanes) * lanes
                    with f.loop(first, first + count) as block:
                        strip = f.add(self._strip(group.index, block.index), f.mul(place, width))
                        target = f.gep(self.own, f.add(strip, self.zeros))
                        at = f.gep(begin, f.mul(block.index, packed.block), self.element)
                        self._copy_outs(at, target, outs, alone)

        self._each_pixel(rows, copy)

    def _strip(self, group: Index, block: Index) -> Index:
        """Where the strip of dy of a block of outputs lies, in a slab of whole groups."""
        f = self.f
        return f.mul(f.add(f.mul(group, self.y_width), f.mul(block, self.packed.block)), self.y_plane)
