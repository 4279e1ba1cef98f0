"""1x1 convolutions and their data gradients by Strassen's algorithm; see strassen.py.

ALGORITHM
    y = x w for pixels x inputs and inputs x outputs, in ``side`` parts along each
SCHEDULE
    A thread takes chunks of pixels, each within one image, so that images do not touch each other's rounding. It writes the
    sums of x's parts that the products take, which stay in L2; then, for one block of outputs of every part after the other,
    it does all products, a tile in registers at a time, and adds these up to the results, whose epilogue it runs. Rows of the
    sums lie an odd number of cache lines apart, however many channels there are, so the pixels of a tile never meet in one
    set of L1.
    On the way it prefetches, a line or two with every round of the loop: the weights of the next product, what the results'
    ends will read and write and, with the last block, the pixels of the next chunk (sooner, they would be gone again).
    The pixels need not divide: the last part then overlaps the one before it, and its first results are left out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from dataclasses import dataclass

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import partition
from twofold.backends.cpu.kernels import strassen as st
from twofold.backends.cpu.kernels.shapes import Conv, evenly, runs, split
from twofold.backends.cpu.kernels.tile import LINE, Fetch, Operands, accumulate, most_pixels, step_cycles, zeros
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.kernels.winograd import apart
from twofold.backends.cpu.llvm import Function, Index, Value
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

UNROLL = 4
THREADS = (2, 4, 8)  # that chunks are shared evenly among
GROUP = 7  # pixels whose results are added up together
MOST_PIXELS = 784  # of a chunk
TRIED = 64  # numbers of chunks that are compared
KIND = 0.01  # part of the time that chunks of a second size cost: more code
# Cycles: of a cache line of x or of the sums between L1 and L2, of a line of products until it is added up, of ending a vector
# of results, and of a byte of weights, and of what left half of L2. Measured on Zen 4: 90 timings, met within 5 %.
LINE_CYCLES = 2.1
PRODUCT_CYCLES = 10.9
RESULT_CYCLES = 5.0
WEIGHT_CYCLES = 0.0047
SPILL_CYCLES = 0.066
Sizes = list[tuple[int, int, int]]  # of an image: (first pixel, chunks, pixels of each)


@dataclass(frozen=True)
class Product:
    """``images`` of ``pixels`` x ``ins`` with ``packed`` weights; ``ldx`` and ``ldy`` elements from pixel to pixel."""

    images: int
    pixels: int
    packed: Packed
    levels: int
    ldx: int
    ldy: int

    @property
    def rows(self) -> int:
        """Inputs of a part."""
        return self.packed.ins // st.side(self.levels)

    @property
    def rounds(self) -> int:
        """Rounds of the loop over them."""
        return max(1, self.rows // UNROLL)

    @property
    def pitch(self) -> int:
        """Elements from pixel to pixel of the sums."""
        return apart(self.rows)

    @property
    def blocks(self) -> int:
        """Blocks of outputs of a part."""
        return self.packed.whole // st.side(self.levels)


def forward(
    machine: Machine,
    conv: Conv,
    packed: Packed,
    levels: int,
    epilogue: ep.Epilogue = (),
    ldx: int = 0,
    ldy: int = 0,
) -> Kernel:
    """Kernel (x, u, y, ...epilogue, scratch) of a pointwise convolution, or with backward ``packed`` weights of its data
    gradient (x is the output's gradient, then); ``u`` from ``strassen.transform_weights``."""
    one = Product(conv.n, conv.h * conv.w, packed, levels, ldx or packed.ins, ldy or packed.outs)
    return _Builder(machine, one, epilogue).kernel("strassen" if packed.forward else "strassen_dx", conv.flops)


def parts(machine: Machine, conv: Conv, packed: Packed, levels: int) -> int:
    """Parts that an epilogue's sums are gathered in."""
    return conv.n * sum(count for _, count, _ in plan(machine, conv.n, conv.h * conv.w, packed, levels).chunks)


@dataclass(frozen=True)
class Plan:
    """An image's ``chunks`` and the ``cycles`` that one core would take for all images; ``waiting`` is the part of its time
    that one of a few cores would wait besides."""

    chunks: Sizes
    cycles: float
    waiting: float


@functools.lru_cache(maxsize=1024)
def plan(machine: Machine, images: int, pixels: int, packed: Packed, levels: int) -> Plan:
    """The chunks that take least time: what a chunk reads and makes stays in L2, tiles are full, a few threads have even
    shares, and the weights, read again for every chunk, are not read too often. None, at no end of cycles, for a few pixels
    that have no such parts."""

    def planned(chunks: Sizes) -> Plan:
        loops = [(images * count, size) for _, count, size in chunks]
        waiting = sum(partition.idle(loops, threads) for threads in THREADS) / len(THREADS)
        cycles = sum(images * count * _chunk_cycles(machine, size, packed, levels) for _, count, size in chunks)
        return Plan(chunks, cycles, waiting)

    fewest, most = -(-pixels // MOST_PIXELS), max(1, pixels // (4 * st.side(levels)))
    counts = range(fewest, max(fewest, most) + 1, max(1, (most - fewest) // TRIED))
    tried = {tuple(evenly(pixels, count)) for count in counts}
    found = [planned(list(chunks)) for chunks in sorted(tried) if all(_cuts(size, levels) for _, _, size in chunks)]
    return min([*found, Plan([], math.inf, 0.0)], key=lambda one: one.cycles * (1 + one.waiting + KIND * len(one.chunks)))


def _cuts(pixels: int, levels: int) -> bool:
    """Whether so many pixels can be cut in equal parts of which only the last overlaps another."""
    return -pixels % st.side(levels) <= -(-pixels // st.side(levels))


def _chunk_cycles(machine: Machine, pixels: int, packed: Packed, levels: int) -> float:
    """Cycles of a chunk on one core."""
    parts, products = st.side(levels), st.products(levels)
    each, rows, blocks = -(-pixels // parts), packed.ins // parts, packed.whole // parts
    vectors = packed.block // machine.lanes
    tiles, lines = split(each, most_pixels(machine, vectors)), packed.block / LINE
    multiplied = sum(rows * step_cycles(machine, size, vectors) for size in tiles) + each * lines * PRODUCT_CYCLES
    summed = each * rows / LINE * (parts**2 + 2 * products) * LINE_CYCLES
    ended = each * parts**2 * vectors * RESULT_CYCLES
    weights = 4 * products * rows * packed.block
    kept = 4 * products * each * (rows + packed.block) + 2 * weights // products
    spilled = max(0, kept - machine.l2 // 2)
    return blocks * (products * multiplied + ended + weights * WEIGHT_CYCLES + spilled * SPILL_CYCLES) + summed


@dataclass(frozen=True)
class _Job:
    """Lines to prefetch: ``share`` in every round, from the one that begins with ``begun`` * ``share`` on, up to ``total``
    (``always``: this is never passed)."""

    begun: Index
    share: int
    total: int
    fetch: Fetch
    always: bool

    @classmethod
    def shared(cls, rounds: int, begun: Index, total: int, fetch: Fetch) -> _Job:
        """``total`` lines, spread over so many rounds."""
        share = -(-total // rounds)
        return cls(begun, share, total, fetch, rounds * share == total)


def _line(f: Function, base: Value, at: Index) -> None:
    f.prefetch(f.gep(base, f.mul(at, LINE)), 2)


class _Builder:
    def __init__(self, machine: Machine, one: Product, epilogue: ep.Epilogue):
        self.machine, self.one, self.epilogue, self.lanes = machine, one, epilogue, machine.lanes
        self.chunks = plan(machine, one.images, one.pixels, one.packed, one.levels).chunks
        self.cells, self.width = st.cells(one.levels), one.packed.block
        self.vectors = self.width // self.lanes
        self.products = st.products(one.levels)
        largest = -(-max(size for _, _, size in self.chunks) // st.side(one.levels))
        self.m_at = self.products * apart(largest * one.pitch)
        self.scratch = -(-4 * (self.m_at + self.products * apart(largest * self.width)) // 64) * 64

    def kernel(self, name: str, flops: int) -> Kernel:
        k = KernelBuilder(self.machine, name, ["x", "u", "y", *ep.params_of(self.epilogue), "scratch"])
        self.f: Function = k.f
        f, images, part = k.f, self.one.images, 0
        self.own = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
        self.m = f.gep(self.own, self.m_at)
        shares = partition.parts(f, [(images * count, size) for _, count, size in self.chunks])
        for (first, count, size), (low, high) in zip(self.chunks, shares):
            with f.loop(low, high) as unit:
                image, chunk = f.divmod_chain(unit.index, [images, count])
                pixel = f.dot([(image, self.one.pixels), (chunk, size)])
                self._chunk(f.add(pixel, first), size, f.add(unit.index, part))
            part += images * count
        note = f"Strassen, {self.one.levels} levels, chunks of {self.chunks[0][2]} pixels"
        return k.finish(flops=flops, scratch=self.scratch, note=note)

    def _chunk(self, pixel: Index, size: int, part: Index) -> None:
        f, one = self.f, self.one
        self.pixel, self.size, self.part = pixel, size, part
        self.starts = st.segments(size, one.levels)
        self.each = -(-size // len(self.starts))  # pixels of a part
        self.v_step, self.m_step = apart(self.each * one.pitch), apart(self.each * self.width)
        self._sums()
        with f.loop(0, one.blocks) as block:
            with f.loop(0, self.products) as number:
                self._product(block.index, number.index)
            self._results(block.index)

    def _sums(self) -> None:
        """own[product][pixel][input] = what the product takes of x."""
        f, one = self.f, self.one
        x = f.gep(f.arg("x"), f.mul(self.pixel, one.ldx))
        places = [self.starts[p] * one.ldx + c * one.rows for p, c in self.cells]
        with f.loop(0, self.each) as pixel:
            line = f.gep(x, f.mul(pixel.index, one.ldx))
            target = f.gep(self.own, f.mul(pixel.index, one.pitch))

            def vector(at: Index, count: int) -> None:
                loads = [f.vload(f.gep(f.gep(line, at), place), count) for place in places]
                for number, value in enumerate(st.spread(f, st.A, one.levels, loads)):
                    f.vstore(value, f.gep(f.gep(target, at), number * self.v_step), count)

            whole = one.rows - one.rows % self.lanes
            with f.loop(0, whole, self.lanes) as loop:
                vector(loop.index, self.lanes)
            if one.rows % self.lanes:
                vector(whole, one.rows % self.lanes)

    def _product(self, block: Index, number: Index) -> None:
        """m[product] = own[product] @ u[block][product]."""
        f, one = self.f, self.one
        panel = st.panel_size(one.packed, one.levels)
        u = f.gep(f.arg("u"), f.mul(f.add(f.mul(block, self.products), number), panel))
        v, m = f.gep(self.own, f.mul(number, self.v_step)), f.gep(self.m, f.mul(number, self.m_step))
        cuts = split(self.each, most_pixels(self.machine, self.vectors))
        jobs = self._jobs(block, number, f.gep(u, panel), len(cuts))
        passed = 0
        for at, many, size in runs(cuts):
            with f.loop(0, many) as run:
                row, tile = f.add(f.mul(run.index, size), at), f.add(run.index, passed)
                x = f.gep(v, f.mul(row, one.pitch))
                ops = Operands(x, u, 1, one.pitch, self.width, (self.lanes,) * self.vectors)
                fetch = functools.partial(self._fetch, jobs, tile)
                sums = accumulate(f, zeros(f, size, self.vectors), ops, one.rows, range(size), UNROLL, fetch)
                for p, line in enumerate(sums):
                    for j, value in enumerate(line):
                        f.vstore(value, f.gep(m, f.add(f.mul(f.add(row, p), self.width), j * self.lanes)))
            passed += many

    def _jobs(self, block: Index, number: Index, following: Value, tiles: int) -> list[_Job]:
        """What is prefetched while a product is done."""
        f, one = self.f, self.one
        rounds = tiles * one.rounds
        lines, parts = self.width // LINE, st.side(one.levels)
        jobs = [_Job.shared(rounds, 0, st.panel_size(one.packed, one.levels) // LINE, functools.partial(_line, f, following))]

        def end(stream: ep.Stream, at: Index) -> None:
            pixel, part, line = f.divmod_chain(at, [self.size, parts, lines])
            channel = f.add(f.mul(f.add(f.mul(part, one.blocks), block), self.width), f.mul(line, LINE))
            stream.fetch(f, f.add(self.pixel, pixel), channel)

        for stream in ep.streams(self.epilogue, one.ldy):
            total = self.size * parts * lines
            jobs.append(_Job.shared(rounds * self.products, f.mul(number, rounds), total, functools.partial(end, stream)))
        if one.ldx <= 2 * one.packed.ins:
            x = f.gep(f.arg("x"), f.mul(f.add(self.pixel, self.size), one.ldx))
            begun = f.add(f.mul(f.sub(block, one.blocks - 1), self.products), number)
            total = self.size * one.ldx // LINE
            jobs.append(_Job.shared(rounds * self.products, f.mul(begun, rounds), total, functools.partial(_line, f, x)))
        return jobs

    def _fetch(self, jobs: list[_Job], tile: Index, step: Index) -> None:
        f = self.f
        turn = f.add(f.mul(tile, self.one.rounds), f.div(step, UNROLL))
        for job in jobs:
            at = f.mul(f.add(job.begun, turn), job.share)
            if job.always:
                for k in range(job.share):
                    job.fetch(f.add(at, k))
            else:
                with f.when(f.icmp("ult", f.index(at), job.total)):
                    for k in range(job.share):
                        job.fetch(f.add(at, k))

    def _results(self, block: Index) -> None:
        """The block's results of every part, and their epilogue: the products are added up level by level."""
        f, one = self.f, self.one
        inner = st.side(one.levels - 1)  # parts of a half
        with f.loop(0, self.width, self.lanes) as vector:
            if one.levels > 1:
                self._halve(vector.index)
            with f.loop(0, inner**2) as cell:
                p, c = f.divmod_chain(cell.index, [inner, inner])
                first = f.add(f.mul(f.add(block, f.mul(c, one.blocks)), self.width), vector.index)
                channels = [f.add(first, half * inner * one.blocks * self.width) for half in range(2)]
                if self.epilogue:
                    with f.when(f.icmp("eq", f.index(p), 0)):
                        for step, channel in itertools.product(self.epilogue, channels):
                            step.begin(f, self.part, channel, self.lanes)
                self._half_results(f.gep(self.m, f.add(f.mul(cell.index, self.m_step), vector.index)), p, channels)

    def _halve(self, at: Index) -> None:
        """The products of the products' quarters become those quarters, in place of the first of them."""
        f = self.f
        with f.loop(0, len(st.A)) as outer, f.loop(0, self.each) as pixel:
            place = f.dot([(outer.index, len(st.A) * self.m_step), (pixel.index, self.width), (1, at)])
            m = [f.gep(self.m, f.add(place, number * self.m_step)) for number in range(len(st.A))]
            for value, target in zip(st.spread(f, st.C, 1, [f.vload(x) for x in m]), m):
                f.vstore(value, target)

    def _half_results(self, m: Value, inner: Index, channels: list[Index]) -> None:
        """Part ``inner`` of each half of the pixels, and the vectors from ``channels`` on, one in each half of the outputs."""
        f, one = self.f, self.one
        sides, step = st.side(one.levels), len(st.A) ** (one.levels - 1) * self.m_step
        over = self.each * sides - self.size
        for first, last in ((0, over), (over, self.each)):
            for at, many, size in runs(split(last - first, GROUP)) if last > first else ():
                with f.loop(0, many) as run:
                    pixel = f.add(f.mul(run.index, size), at + first)
                    source = f.gep(m, f.mul(pixel, self.width))
                    for (half, c), row in zip(st.cells(1), st.C):
                        part = f.add(inner, half * sides // 2)
                        start = f.imin(f.mul(part, self.each), self.size - self.each)
                        new = f.icmp("ne", f.index(part), sides - 1)  # elsewhere the first pixels are an earlier part's
                        with f.when(new) if first < over else contextlib.nullcontext():
                            self._store(source, step, f.add(pixel, start), size, channels[c], row)

    def _store(self, m: Value, step: int, pixel: Index, size: int, channel: Index, row: st.Row) -> None:
        """The results of ``size`` pixels of the chunk from ``pixel`` on, which ``row`` makes of what lies at ``m``."""
        f, one, kind = self.f, self.one, ep.element(self.epilogue)
        values = [
            st.combine(f, [(x, f.vload(f.gep(m, n * step + k * self.width))) for n, x in enumerate(row) if x])
            for k in range(size)
        ]
        first = f.add(self.pixel, pixel)
        sites = [ep.Site(f.add(first, k), channel, self.lanes) for k in range(size)]
        for value, site in zip(ep.finish_column(f, self.epilogue, values, sites, self.part), sites):
            f.vstore(value, f.gep(f.arg("y"), f.add(f.mul(site.pixel, one.ldy), channel), kind))
