"""The gradient of max pooling, gathered: every element of dx is written once, all channels of a pixel together.

ALGORITHM
    winner[oh, ow, c] = the first tap of the window with its maximum (a NaN counts as the largest)
    dx[h, w, c] = sum over the windows (oh, ow) that cover (h, w) of g[oh, ow, c] where (h, w) is its winner
SCHEDULE
    (image, band of rows of dx) are shared among the threads. For a band the winners of all windows that touch it go to
    scratch, as numbers of taps; then its rows are written. Windows on the border of two bands are looked at twice.
    Columns covered by the same windows, relative to themselves, are one loop. Windows are added in their order, so the
    bits do not depend on the bands.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.kernels.axes import clip, segments
from twofold.backends.cpu.kernels.pool import Pool, channel_chunks, larger
from twofold.backends.cpu.llvm import Index, Value, const
from twofold.backends.cpu.llvm.types import load_wide, store_narrow
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST_TAPS = 25  # windows with more are rare and written otherwise
VECTORS = 4  # of channels at once

Run = tuple[int, int, int, tuple[tuple[int, int], ...]]


def pays(machine: Machine, pool: Pool) -> bool:
    """Whether the kernel takes these windows, and has channels enough to be quicker than scattering."""
    return pool.dilation == (1, 1) and pool.window[0] * pool.window[1] <= MOST_TAPS and pool.c > 2 * machine.lanes


def gradient(machine: Machine, pool: Pool, ldx: int = 0, ldg: int = 0, ldd: int = 0) -> Kernel:
    """Kernel (x, g, dx, scratch); the ld's are the pixel distances of x, g and dx."""
    k = KernelBuilder(machine, "max_pool_dx", ["x", "g", "dx", "scratch"])
    return _Emitter(k, pool, ldx or pool.c, ldg or pool.c, ldd or pool.c).kernel()


class _Emitter:
    def __init__(self, k: KernelBuilder, pool: Pool, ldx: int, ldg: int, ldd: int):
        self.k, self.f, self.pool = k, k.f, pool
        self.ldx, self.ldg, self.ldd = ldx, ldg, ldd
        self.v, self.h = pool.axes
        self.lanes = k.machine.lanes
        self.width = -(-pool.c // self.lanes) * self.lanes  # channels of a winner, whole vectors
        self.rows = self._band(k.machine.l2 // 4)
        self.chunks = channel_chunks(pool.c, self.lanes, VECTORS)

    def _band(self, most: int) -> int:
        """Rows of dx in a band: many, as far as their winners fit ``most`` bytes and there are bands for all threads."""
        pool, rows = self.pool, self.v.step
        while rows < pool.h and self._bytes(2 * rows) <= most and pool.n * -(-pool.h // (2 * rows)) >= 8:
            rows *= 2
        return rows

    def _bytes(self, rows: int) -> int:
        windows = min(self.pool.oh, (rows + self.v.taps - 2) // self.v.step + 2)
        return 4 * windows * self.pool.ow * self.width

    def kernel(self) -> Kernel:
        f, pool, size = self.f, self.pool, self._bytes(self.rows)
        self.winners = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), size), "i8")
        bands = -(-pool.h // self.rows)
        low, high = f.share(pool.n * bands, f.arg("tid"), f.arg("n"))
        with f.loop(low, high) as unit:
            image, band = f.divmod_chain(unit.index, [pool.n, bands])
            top = f.mul(band, self.rows)
            bottom = f.imin(f.add(top, self.rows), pool.h)
            first, stop = self._windows(top)[0], self._windows(f.sub(bottom, 1))[1]
            with f.loop(first, stop) as row:
                self._find(image, row.index, f.sub(row.index, first))
            with f.loop(top, bottom) as line:
                self._gather(image, line.index, first)
        return self.k.finish(scratch=size, note=f"max pool gradient, {self.rows} rows at a time")

    def _windows(self, line: Index) -> tuple[Index, Index]:
        """The rows of windows [low, high) that cover a line of the image."""
        f, v = self.f, self.v
        reach = f.imax(f.sub(line, v.first + v.taps - 1), 0)
        low = f.div(f.add(reach, v.step - 1), v.step)
        return low, f.imin(f.add(f.div(f.sub(line, v.first), v.step), 1), v.outputs)

    # ---- winners ----------------------------------------------------------------------------------------------------
    def _find(self, image: Index, row: Index, place: Index) -> None:
        """The winners of one row of windows, into row ``place`` of the scratch."""
        f = self.f
        low, high = clip(f, self.v, row)
        for start, _, count in segments(self.h, 1):
            inside = [t for t in range(self.h.taps) if self.h.valid(start, t)]
            with f.loop(start, start + count) as column:
                for first, chunks, counts in self.chunks:
                    with f.loop(0, chunks) as chunk:
                        channel = f.add(f.mul(chunk.index, len(counts) * self.lanes), first)
                        self._winner(image, row, column.index, channel, counts, inside, (low, high), place)

    def _winner(
        self, image: Index, row: Index, column: Index, channel: Index, counts: Sequence[int], inside: Sequence[int],
        lines: tuple[Index, Index], place: Index,
    ) -> None:  # fmt: skip
        f, pool, n = self.f, self.pool, len(counts)
        left = f.add(f.mul(column, self.h.step), self.h.first)
        none = self._tap(lines[0], inside[0])
        carry = [const(f.vec(), -float("inf"))] * n + [none] * n
        with f.loop(*lines, carry=carry) as tap:
            best, winner = tap.carried[:n], tap.carried[n:]
            line = f.add(f.add(f.mul(row, self.v.step), self.v.first), tap.index)
            pixel = f.dot([(image, pool.h * pool.w), (line, pool.w), (left, 1)])
            for t in inside:
                x = f.gep(f.arg("x"), f.add(f.mul(f.add(pixel, t), self.ldx), channel), pool.element)
                number = self._tap(tap.index, t)
                for j, count in enumerate(counts):
                    value = load_wide(f, f.gep(x, j * self.lanes, pool.element), count, pool.dtype)
                    better = larger(f, best[j], value)
                    best[j] = f.select(better, value, best[j])
                    winner[j] = f.select(better, number, winner[j])
            tap.carry([*best, *winner])
        target = self._slot(place, column, channel)
        for j, value in enumerate(tap.results[n:]):
            f.vstore(value, f.gep(target, j * self.lanes))

    def _tap(self, line: Index, column: int) -> Value:
        """The number of a tap, in all lanes."""
        f = self.f
        return f.splat(f.cast("sitofp", f.index(f.add(f.mul(line, self.h.taps), column)), "float"))

    def _slot(self, place: Index, column: Index, channel: Index) -> Value:
        f = self.f
        return f.gep(self.winners, f.dot([(place, self.pool.ow * self.width), (column, self.width), (channel, 1)]))

    # ---- dx ---------------------------------------------------------------------------------------------------------
    def _gather(self, image: Index, line: Index, first: Index) -> None:
        """One line of dx; row 0 of the scratch is row ``first`` of the windows."""
        f = self.f
        low, high = self._windows(line)
        for phase, start, count, covers in self._columns():
            with f.loop(start, start + count) as at:
                for begin, chunks, counts in self.chunks:
                    with f.loop(0, chunks) as chunk:
                        channel = f.add(f.mul(chunk.index, len(counts) * self.lanes), begin)
                        sums = self._sums(image, line, (low, high), first, at.index, covers, channel, counts)
                        column = f.add(f.mul(at.index, self.h.step), phase)
                        pixel = f.dot([(image, self.pool.h * self.pool.w), (line, self.pool.w), (column, 1)])
                        element, dtype = self.pool.element, self.pool.dtype
                        dx = f.gep(f.arg("dx"), f.add(f.mul(pixel, self.ldd), channel), element)
                        for j, (value, lanes) in enumerate(zip(sums, counts)):
                            store_narrow(f, value, f.gep(dx, j * self.lanes, element), lanes, dtype)

    def _sums(
        self, image: Index, line: Index, rows: tuple[Index, Index], first: Index, at: Index,
        covers: Sequence[tuple[int, int]], channel: Index, counts: Sequence[int],
    ) -> list[Value]:  # fmt: skip
        f, pool = self.f, self.pool
        zero = const(f.vec(), 0.0)
        with f.loop(*rows, carry=[zero] * len(counts)) as window:
            sums = list(window.carried)
            down = f.sub(f.sub(line, self.v.first), f.mul(window.index, self.v.step))
            for offset, tap in covers:
                column = f.add(at, offset)
                winner = self._slot(f.sub(window.index, first), column, channel)
                place = f.dot([(image, pool.oh * pool.ow), (window.index, pool.ow), (column, 1)])
                g = f.gep(f.arg("g"), f.add(f.mul(place, self.ldg), channel), pool.element)
                number = self._tap(down, tap)
                for j, count in enumerate(counts):
                    hit = f.fcmp("oeq", f.vload(f.gep(winner, j * self.lanes)), number)
                    given = load_wide(f, f.gep(g, j * self.lanes, pool.element), count, pool.dtype)
                    amount = f.select(hit, given, zero)
                    sums[j] = f.fadd(sums[j], amount)
            window.carry(sums)
        return window.results

    def _columns(self) -> list[Run]:
        """The columns of dx as runs (phase, start, count, covers): column ``at*stride + phase`` is tap ``t`` of window
        column ``at + offset`` for every (offset, t) in covers."""
        h = self.h
        runs: list[Run] = []
        for phase in range(min(h.step, h.inputs)):
            last: Run | None = None
            for at in range(-(-(h.inputs - phase) // h.step)):
                column = at * h.step + phase
                taps = [(o, column - h.first - o * h.step) for o in range(h.outputs)]
                covers = tuple((o - at, t) for o, t in taps if 0 <= t < h.taps)
                if last is not None and last[3] == covers:
                    last = (phase, last[1], last[2] + 1, covers)
                    runs[-1] = last
                else:
                    last = (phase, at, 1, covers)
                    runs.append(last)
        return runs
