"""A slab: the rows that a block of output rows reads of one group's channels, copied densely, padding as zeros.

Channels-last, the ``ins`` channels of one group lie ``ldx`` elements apart from pixel to pixel. If that is a large power of
two they meet in a few sets of the cache; and every kernel position would be a loop of ``ins`` steps with variants at the
edges. In a slab ``[line][column][ins]`` all taps are inside, and (kw, i) is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twofold.backends.cpu.kernels.shapes import Pass
from twofold.backends.cpu.kernels.tile import LINE
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const


def suits(one: Pass, packed: Packed) -> bool:
    """Whether a pass goes through slabs: groups that share cache lines, and taps enough that a copy is read several times.

    Groups of whole lines gain nothing: 14x14 of 16 channels a group ran as fast without (within the noise of 15 %).
    """
    return packed.groups > 1 and packed.ins < LINE and one.v.taps * one.h.taps > 1


@dataclass(frozen=True)
class Slab:
    """The slab of ``rows`` output rows of a pass, of ``ins`` channels."""

    one: Pass
    ins: int
    rows: int

    @property
    def read(self) -> Pass:
        """The pass as it reads a slab."""
        v, h = self.one.v, self.one.h
        lines = (self.rows - 1) * v.step + (v.taps - 1) * v.spacing + 1
        columns = (h.outputs - 1) * h.step + (h.taps - 1) * h.spacing + 1
        return replace(
            self.one, v=replace(v, inputs=lines, first=0), h=replace(h, inputs=columns, first=0), ldx=self.ins, x_first=0
        )

    @property
    def bytes(self) -> int:
        return 4 * self.read.v.inputs * self.read.h.inputs * self.ins

    def copy(self, f: Function, x: Value, slab: Value, row: Index) -> None:
        """Fill the slab from an image's channels at ``x``, for the output rows from ``row`` on."""
        v, h, width = self.one.v, self.one.h, self.read.h.inputs
        top = f.add(f.mul(row, v.step), v.first)
        left = min(max(0, -h.first), width)
        right = max(left, min(width, h.inputs - h.first))
        with f.loop(0, self.read.v.inputs) as line:
            source_line = f.add(top, line.index)
            target = f.gep(slab, f.mul(line.index, width * self.ins))

            def fill() -> list[Value]:
                source = f.gep(x, f.mul(f.add(f.mul(source_line, h.inputs), h.first), self.one.ldx))
                for low, high, given in ((0, left, None), (left, right, source), (right, width, None)):
                    self._columns(f, given, target, low, high)
                return []

            def clear() -> list[Value]:
                self._columns(f, None, target, 0, width)
                return []

            f.choose(f.icmp("ult", f.index(source_line), v.inputs), fill, clear)

    def _columns(self, f: Function, source: Value | None, target: Value, low: int, high: int) -> None:
        """Columns [low, high) of one line; zeros without a source."""
        if low == high:
            return
        lanes, ins = f.machine.lanes, self.ins
        with f.loop(low, high) as column:
            to = f.gep(target, f.mul(column.index, ins))
            begin = None if source is None else f.gep(source, f.mul(column.index, self.one.ldx))
            for at in range(0, ins, lanes):
                count = min(lanes, ins - at)
                value = const(f.vec(), 0.0) if begin is None else f.vload(f.gep(begin, at), count)
                f.vstore(value, f.gep(to, at), count)
