"""Max pooling: the maxima of columns, shared by the windows that meet them.

ALGORITHM
    m[oh, j] = max over kh of x[n, oh*s + kh*d - p, j, c]
    y[n, oh, ow, c] = max over kw of m[oh, ow*s + kw - p], then the epilogue
SCHEDULE
    Rows of the output are shared among the threads, the last one first: what was written last is still in L2, and what lies
    before it not pushed out by reading. Vectors run along channels. Along a row the maxima of the columns that the
    next window meets too stay in registers: 3x3/2 reads 6 pixels for 9, 3x3/1 reads 3. At the edges a pixel of the same window
    takes the place of one that is outside: a maximum does not mind to meet it twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.axes import clip
from twofold.backends.cpu.kernels.pool import Pool, channel_chunks, larger_of
from twofold.backends.cpu.kernels.shapes import Axis
from twofold.backends.cpu.llvm import Function, Index, Value
from twofold.backends.cpu.llvm.types import load_wide
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST_TAPS = 25  # are written out
VECTORS = 4  # of channels at a time


def fits(pool: Pool) -> bool:
    """Whether every window meets the image, in columns that lie side by side, and has few enough taps."""
    if pool.dilation[1] > 1 or pool.window[0] * pool.window[1] > MOST_TAPS:
        return False
    return all(any(axis.valid(o, t) for t in range(axis.taps)) for axis in pool.axes for o in range(axis.outputs))


def forward(machine: Machine, pool: Pool, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0) -> Kernel:
    """Kernel (x, y, ...epilogue); the ld's are the pixel distances of x and y."""
    k = KernelBuilder(machine, "max_pool", ["x", "y", *ep.params_of(epilogue)])
    f, emitter = k.f, _Emitter(k.f, pool, epilogue, ldx or pool.c, ldy or pool.c)
    low, high = f.share(pool.n * pool.oh, f.arg("tid"), f.arg("n"))
    with f.loop(low, high) as unit:
        from_end = f.sub(f.sub(f.add(low, high), 1), unit.index)
        image, row = f.divmod_chain(from_end, [pool.n, pool.oh])
        for first, chunks, counts in channel_chunks(pool.c, machine.lanes, VECTORS):
            with f.loop(0, chunks) as chunk:
                emitter.row(image, row, f.add(f.mul(chunk.index, len(counts) * machine.lanes), first), counts)
    return k.finish(note="max pool")


class _Emitter:
    """Emits a row of the output, a few vectors of channels of it."""

    def __init__(self, f: Function, pool: Pool, epilogue: ep.Epilogue, ldx: int, ldy: int):
        self.f, self.pool, self.epilogue, self.ldx, self.ldy = f, pool, epilogue, ldx, ldy
        self.v, self.h = pool.axes

    def row(self, image: Index, row: Index, channel: Index, counts: Sequence[int]) -> None:
        f, h, many = self.f, self.h, len(counts)
        lines = self._lines(image, row, channel)
        kept = max(0, h.taps - h.step)  # columns that the next window meets, too
        carry = [value for t in range(kept) for value in self._column(lines, 0, t, counts)]
        with f.loop(0, h.outputs, carry=carry) as column:
            known = [column.carried[at : at + many] for at in range(0, kept * many, many)]
            known += [self._column(lines, column.index, t, counts) for t in range(kept, h.taps)]
            best = known[0]
            for other in known[1:]:
                best = [larger_of(f, a, b) for a, b in zip(best, other)]
            self._store(image, row, column.index, channel, best, counts)
            column.carry([value for values in known[len(known) - kept :] for value in values] if kept else [])

    def _lines(self, image: Index, row: Index, channel: Index) -> list[Value]:
        """Where the lines of a row of windows begin, each within the image."""
        f, v, pool = self.f, self.v, self.pool
        low, high = clip(f, v, row)
        top = f.add(f.mul(image, v.inputs), f.add(f.mul(row, v.step), v.first))
        taps = [f.imin(f.imax(t, low), f.sub(high, 1)) for t in range(v.taps)]
        lines = [f.mul(f.add(top, f.mul(tap, v.spacing)), self.h.inputs * self.ldx) for tap in taps]
        return [f.gep(f.arg("x"), f.add(line, channel), pool.element) for line in lines]

    def _column(self, lines: Sequence[Value], column: Index, tap: int, counts: Sequence[int]) -> list[Value]:
        """The maxima of the column that ``tap`` of a window meets."""
        f, lanes, pool = self.f, self.f.machine.lanes, self.pool
        pixel = f.mul(_within(f, self.h, column, tap), self.ldx)
        found: list[Value] = []
        for line in lines:
            places = [f.gep(line, f.add(pixel, j * lanes), pool.element) for j in range(len(counts))]
            values = [load_wide(f, place, count, pool.dtype) for place, count in zip(places, counts)]
            found = [larger_of(f, a, b) for a, b in zip(found, values)] if found else values
        return found

    def _store(
        self, image: Index, row: Index, column: Index, channel: Index, values: Sequence[Value], counts: Sequence[int]
    ) -> None:
        f, pool, lanes, y = self.f, self.pool, self.f.machine.lanes, ep.element(self.epilogue)
        pixel = f.add(f.mul(f.add(f.mul(image, pool.oh), row), pool.ow), column)
        base = f.gep(f.arg("y"), f.dot([(pixel, self.ldy), (channel, 1)]), y)
        for j, value in enumerate(values):
            site = ep.Site(pixel, f.add(channel, j * lanes), counts[j])
            [value] = ep.finish_column(f, self.epilogue, [value], [site], 0)
            f.vstore(value, f.gep(base, j * lanes, y), counts[j])


def _within(f: Function, axis: Axis, output: Index, tap: int) -> Index:
    """The input of a tap, or the nearest one within the image."""
    place = f.add(f.mul(output, axis.step), axis.first + tap)
    if not axis.valid(0, tap):
        place = f.imax(place, 0)
    return place if axis.valid(axis.outputs - 1, tap) else f.imin(place, axis.inputs - 1)
