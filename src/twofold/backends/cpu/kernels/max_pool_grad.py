"""The gradient of max pooling, gathered: every element of dx is written once, all channels of a pixel together.

ALGORITHM
    winner[oh, ow, c] = the first tap of the window with its maximum (a NaN counts as the largest)
    dx[h, w, c] = sum over the windows (oh, ow) that cover (h, w) of g[oh, ow, c] where (h, w) is its winner; then the epilogue
SCHEDULE
    (image, band of blocks of lines) are shared among the threads; a block is as many lines as the windows' step. The few
    rows of windows that cover a block are kept in scratch, winner (a number as a float) beside gradient, in a ring: each is
    looked at when its last lines are reached. Around the image the scratch has winners that no tap is, so that all lines and
    columns are written by the same code. Neighbouring windows, and neighbouring pixels, are done together, a vector of
    channels at a time: what they share is loaded once. Windows are added in their order, so the bits do not depend on bands.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.axes import clip, segments
from twofold.backends.cpu.kernels.pool import Pool, channel_chunks, larger
from twofold.backends.cpu.kernels.shapes import Axis
from twofold.backends.cpu.llvm import Index, Value, const
from twofold.backends.cpu.llvm.types import load_wide
from twofold.backends.cpu.machine import LINE, Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST_TAPS = 25  # windows with more are rare and written otherwise
ENOUGH = 16  # units for the threads: images, or images and bands
NOBODY = -1.0  # the winner of what is no window


def pays(machine: Machine, pool: Pool) -> bool:
    """Whether the kernel takes these windows, and has channels enough to be quicker than scattering."""
    taken = pool.dilation == (1, 1) and pool.window[0] * pool.window[1] <= MOST_TAPS
    return taken and pool.c > 2 * machine.lanes and all(_Covers(axis).all_windows(axis) for axis in pool.axes)


def parts(pool: Pool) -> int:
    """Parts that an epilogue's sums are gathered in."""
    return pool.n * _bands(pool)


def _bands(pool: Pool) -> int:
    return min(-(-pool.h // pool.stride[0]), -(-ENOUGH // pool.n))


def gradient(
    machine: Machine, pool: Pool, epilogue: ep.Epilogue = (), ldx: int = 0, ldg: int = 0, ldd: int = 0
) -> Kernel:
    """Kernel (x, g, dx, ...epilogue, scratch); the ld's are the pixel distances of x, g and dx."""
    k = KernelBuilder(machine, "max_pool_dx", ["x", "g", "dx", *ep.params_of(epilogue), "scratch"])
    return _Emitter(k, pool, epilogue, ldx or pool.c, ldg or pool.c, ldd or pool.c).kernel()


class _Covers:
    """Which windows cover the pixels of one axis: pixel ``block*step + phase`` is tap ``t`` of window ``block + o`` for every
    (o, t) of ``phases[phase]``; ``low`` to ``high`` are all the o's."""

    def __init__(self, axis: Axis):
        self.phases: list[list[tuple[int, int]]] = []
        for phase in range(axis.step):
            place = phase - axis.first
            offsets = range(-((axis.taps - 1 - place) // axis.step), place // axis.step + 1)
            self.phases.append([(o, place - o * axis.step) for o in offsets])
        found = [o for phase in self.phases for o, _ in phase]
        self.low, self.high = min(found), max(found)
        self.blocks = -(-axis.inputs // axis.step)

    def all_windows(self, axis: Axis) -> bool:
        """Whether every window covers some pixel."""
        return self.low <= 0 and axis.outputs <= self.blocks + self.high

    @property
    def windows(self) -> int:
        """Windows that any block might be covered by, those outside the image too."""
        return self.blocks + self.high - self.low


class _Emitter:
    def __init__(self, k: KernelBuilder, pool: Pool, epilogue: ep.Epilogue, ldx: int, ldg: int, ldd: int):
        self.k, self.f, self.pool, self.epilogue = k, k.f, pool, epilogue
        self.ldx, self.ldg, self.ldd = ldx, ldg, ldd
        self.v, self.h = pool.axes
        self.down, self.across = _Covers(self.v), _Covers(self.h)
        self.lanes = k.machine.lanes
        # done together, with registers for each and for what they share
        self.windows, self.pixels = max(1, k.machine.registers // 16), k.machine.registers // 8
        self.width = -(-pool.c // self.lanes) * self.lanes  # channels of a winner, whole vectors
        self.rows = self.down.high - self.down.low + 1
        self.streams = [s for s in ep.streams(epilogue, self.ldd) if not s.written]
        self.chunks = channel_chunks(pool.c, self.lanes, 1)

    def kernel(self) -> Kernel:
        f, pool, bands = self.f, self.pool, _bands(self.pool)
        row = 2 * self.across.windows * self.width
        size = 4 * self.rows * row
        self.aligned = f.is_aligned(f.arg("dx"), LINE) if self._is_large() else None
        self.scratch = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), size), "i8")
        self._forget(0, self.rows * self.across.windows)
        with f.loop(*f.share(pool.n * bands, f.arg("tid"), f.arg("n"))) as unit:
            image, band = f.divmod_chain(unit.index, [pool.n, bands])
            for step in self.epilogue:
                for first, count, (lanes,) in self.chunks:
                    with f.loop(0, count) as chunk:
                        step.begin(f, unit.index, f.add(f.mul(chunk.index, self.lanes), first), lanes)
            low, high = (f.div(f.mul(f.add(band, i), self.down.blocks), bands) for i in (0, 1))
            with f.loop(low, high) as block:
                last = f.add(block.index, self.down.high)
                opens = f.icmp("eq", block.index, low)
                begin = f.select(opens, f.index(f.add(block.index, self.down.low)), f.index(last))
                with f.loop(begin, f.add(last, 1)) as row_:
                    self._row(image, row_.index)
                for phase in range(min(self.v.step, self.v.inputs)):
                    self._line(unit.index, image, block.index, phase)
        return self.k.finish(scratch=size, note=f"max pool gradient, {self.rows} rows of windows kept")

    def _is_large(self) -> bool:
        """Whether dx is whole lines, and too many for the last cache."""
        machine, pool = self.k.machine, self.pool
        lines = machine.stores_lines and self.ldd % machine.lanes == 0 and ep.element(self.epilogue) == "float"
        return lines and machine.overflows(4 * pool.n * pool.h * pool.w * self.ldd)

    def _slot(self, row: Index, column: Index, channel: Index = 0) -> Value:
        """Where the winner of a window lies in the scratch; its gradient lies ``width`` further."""
        f = self.f
        place = f.add(f.mul(self._ring(row), self.across.windows), f.sub(column, self.across.low))
        return f.gep(self.scratch, f.add(f.mul(place, 2 * self.width), channel))

    def _ring(self, row: Index) -> Index:
        return self.f.rem(self.f.sub(row, self.down.low), self.rows)

    def _forget(self, start: Index, count: Index) -> None:
        """``count`` windows from number ``start`` of the scratch on have no winner."""
        f = self.f
        with f.loop(start, f.add(start, count)) as at, f.loop(0, self.width, self.lanes) as channel:
            place = f.add(f.mul(at.index, 2 * self.width), channel.index)
            f.vstore(const(f.vec(), NOBODY), f.gep(self.scratch, place))

    # ---- winners ----------------------------------------------------------------------------------------------------
    def _row(self, image: Index, row: Index) -> None:
        """The winners of one row of windows, which may lie outside the image."""
        f, v, down = self.f, self.v, self.down
        if down.low >= 0 and down.blocks + down.high <= v.outputs:
            return self._find(image, row)
        inside = f.icmp("ult", row, v.outputs)  # below 0 is a very large number
        with f.when(inside):
            self._find(image, row)
        with f.when(f.icmp("uge", row, v.outputs)):
            self._forget(f.mul(self._ring(row), self.across.windows), self.across.windows)

    def _find(self, image: Index, row: Index) -> None:
        f = self.f
        lines = clip(f, self.v, row)
        for start, size, tiles in segments(self.h, self.windows):
            with f.loop(0, tiles) as tile:
                column = f.add(f.mul(tile.index, size), start)
                for first, chunks, (count,) in self.chunks:
                    with f.loop(0, chunks) as chunk:
                        channel = f.add(f.mul(chunk.index, self.lanes), first)
                        self._winners(image, row, column, channel, count, range(start, start + size), lines)

    def _winners(
        self, image: Index, row: Index, column: Index, channel: Index, count: int, like: range, lines: tuple[Index, Index]
    ) -> None:
        """Those of a few neighbouring windows, whose taps fall inside as those of the windows ``like`` do."""
        f, pool, h, n = self.f, self.pool, self.h, len(like)
        inside = [[t for t in range(h.taps) if h.valid(o, t)] for o in like]
        base = f.splat(f.cast("sitofp", f.index(f.mul(lines[0], h.taps)), "float"))
        first = [f.fadd(base, float(taps[0])) if taps else base for taps in inside]
        with f.loop(*lines, carry=[*[const(f.vec(), -float("inf"))] * n, *first, base]) as line:
            best, winner, base = line.carried[:n], line.carried[n:-1], line.carried[-1]
            at = f.add(f.add(f.mul(row, self.v.step), self.v.first), line.index)
            left = f.add(f.mul(column, h.step), h.first)
            pixel = f.dot([(image, pool.h * pool.w), (at, pool.w), (left, 1)])
            x = f.gep(f.arg("x"), f.add(f.mul(pixel, self.ldx), channel), pool.element)
            known: dict[int, Value] = {}
            for t in range(h.taps):
                number = f.fadd(base, float(t)) if t else base
                for i in (i for i in range(n) if t in inside[i]):
                    place = i * h.step + t
                    if place not in known:
                        source = f.gep(x, place * self.ldx, pool.element)
                        known[place] = load_wide(f, source, count, pool.dtype)
                    better = larger(f, best[i], known[place])
                    best[i] = f.select(better, known[place], best[i])
                    winner[i] = f.select(better, number, winner[i])
            line.carry([*best, *winner, f.fadd(base, float(h.taps))])
        self._fetch(image, row, column, channel, n)
        self._keep(image, row, column, channel, count, line.results[n:-1])

    def _fetch(self, image: Index, row: Index, column: Index, channel: Index, count: int) -> None:
        """Ask for what the windows below these read first."""
        f, pool, v, h = self.f, self.pool, self.v, self.h
        line = f.add(f.add(f.mul(f.add(row, 1), v.step), v.first), max(0, v.taps - v.step))
        pixel = f.dot([(image, pool.h * pool.w), (line, pool.w), (f.add(f.mul(column, h.step), h.first), 1)])
        for i in range(v.step):
            for j in range(count * h.step):
                place = f.add(f.mul(f.add(pixel, i * pool.w + j), self.ldx), channel)
                f.prefetch(f.gep(f.arg("x"), place, pool.element), 2)
        below = f.dot([(image, pool.oh * pool.ow), (f.add(row, 1), pool.ow), (column, 1)])
        for i in range(count):
            f.prefetch(f.gep(f.arg("g"), f.add(f.mul(f.add(below, i), self.ldg), channel), pool.element), 2)

    def _keep(self, image: Index, row: Index, column: Index, channel: Index, count: int, winners: Sequence[Value]) -> None:
        """Winners and gradients of a few neighbouring windows, to the scratch."""
        f, pool = self.f, self.pool
        target, place = self._slot(row, column, channel), f.dot([(image, pool.oh * pool.ow), (row, pool.ow), (column, 1)])
        g = f.gep(f.arg("g"), f.add(f.mul(place, self.ldg), channel), pool.element)
        for i, winner in enumerate(winners):
            given = load_wide(f, f.gep(g, i * self.ldg, pool.element), count, pool.dtype)
            f.vstore(winner, f.gep(target, 2 * i * self.width))
            f.vstore(given, f.gep(target, (2 * i + 1) * self.width))

    # ---- dx ---------------------------------------------------------------------------------------------------------
    def _line(self, part: Index, image: Index, block: Index, phase: int) -> None:
        """One line of dx: tiles of neighbouring pixels, and what is left over."""
        f, pool, step = self.f, self.pool, self.h.step
        line = f.add(f.mul(block, self.v.step), phase)
        size = max(1, self.pixels // step) * step
        tiles, rest = divmod(pool.w, size)

        def emit() -> None:
            for start, count, pixels in ((0, tiles, size), (tiles * size, 1, rest)):
                if count and pixels:
                    with f.loop(0, count) as tile:
                        column = f.add(f.mul(tile.index, pixels), start)
                        first = f.add(f.mul(tile.index, pixels // step), start // step)
                        self._tile(part, image, line, block, phase, column, first, pixels)

        if phase < (self.v.inputs - 1) % self.v.step + 1:
            return emit()
        with f.when(f.icmp("slt", line, pool.h)):
            emit()

    def _tile(
        self, part: Index, image: Index, line: Index, block: Index, phase: int, column: Index, first: Index, pixels: int
    ) -> None:  # fmt: skip
        """``pixels`` neighbouring ones, from ``column`` on; ``first`` is the number of its block."""
        f, pool = self.f, self.pool
        place = f.dot([(image, pool.h * pool.w), (line, pool.w), (column, 1)])
        element = ep.element(self.epilogue)
        for begin, chunks, (lanes,) in self.chunks:
            with f.loop(0, chunks) as chunk:
                channel = f.add(f.mul(chunk.index, self.lanes), begin)
                sums = self._sums(block, phase, first, channel, pixels)
                sites = [ep.Site(f.add(place, i), channel, lanes) for i in range(pixels)]
                for stream in self.streams:
                    for site in sites:
                        stream.fetch(f, f.add(site.pixel, pool.w), channel)
                dx = f.gep(f.arg("dx"), f.add(f.mul(place, self.ldd), channel), element)
                self._store(ep.finish_column(f, self.epilogue, sums, sites, part), dx, lanes)

    def _store(self, values: Sequence[Value], dx: Value, lanes: int) -> None:
        """A vector of channels of neighbouring pixels; what lies below them is asked for, unless it goes past the caches."""
        f, element = self.f, ep.element(self.epilogue)

        def store() -> list[Value]:
            for i, value in enumerate(values):
                f.vstore(value, f.gep(dx, i * self.ldd, element), lanes)
                f.prefetch(f.gep(dx, (i + self.pool.w) * self.ldd, element), 2, write=True)
            return []

        def stream() -> list[Value]:
            for i, value in enumerate(values):
                f.stream(value, f.gep(dx, i * self.ldd, element))
            return []

        if self.aligned is None or lanes < self.lanes:
            store()
        else:
            f.choose(self.aligned, stream, store)

    def _sums(self, block: Index, phase: int, first: Index, channel: Index, pixels: int) -> list[Value]:
        """What a vector of channels of these pixels receives; every window that covers some of them is read once."""
        f, step = self.f, self.h.step
        receivers: dict[int, list[tuple[int, int]]] = {}  # of a window, from the first on: pixels, and which tap each is
        for i in range(pixels):
            for offset, tap in self.across.phases[i % step]:
                receivers.setdefault(i // step + offset, []).append((i, tap))
        sums = [const(f.vec(), 0.0)] * pixels
        for row, down in self.down.phases[phase]:
            start = self._slot(f.add(block, row), f.add(first, self.across.low), channel)
            for window in sorted(receivers):
                at = f.gep(start, 2 * (window - self.across.low) * self.width)
                winner, given = f.vload(at), f.vload(f.gep(at, self.width))
                for i, tap in receivers[window]:
                    hit = f.fcmp("oeq", winner, float(down * self.h.taps + tap))
                    sums[i] = f.select(hit, f.fadd(sums[i], given), sums[i])
        return sums
