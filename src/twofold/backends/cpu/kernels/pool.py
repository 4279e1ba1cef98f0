"""Max and average pooling, forward and gradient.

ALGORITHM
    y[n, oh, ow, c] = max, or mean, over the window's taps inside the image of x[n, oh*s + kh*d - p, ow*s + kw*d - p, c]
    gradient: each window's value goes to its first maximum (a NaN counts as the largest), or evenly to its taps
SCHEDULE
    Vectors run along channels. Forward: rows of the output are shared among the threads. Gradient: (image, 16
    channels) are shared, so that overlapping windows add up in one thread, in order. kh is clipped at run time; the
    columns at the left and right edge are variants with fewer taps. 16-bit images are read as floats, computed with in
    float32, and rounded once. ``max_pool.py`` has the forward maximum of most windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.axes import clip, segments
from twofold.backends.cpu.kernels.shapes import Axis, Pair
from twofold.backends.cpu.llvm import Function, Index, Value, const, vector
from twofold.backends.cpu.llvm.types import load_wide, memory_type, store_narrow
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder
from twofold.base.dtypes import DType, float32

_WIDE = 9  # windows wider than this loop over kw instead of writing it out


@dataclass(frozen=True)
class Pool:
    """Windows over ``n`` images of (h, w, c) -> (oh, ow, c). The last window may hang over the padded edge (ceil
    mode).
    """

    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    window: Pair
    stride: Pair
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    include_pad: bool = False  # an average counts padding (never the overhang)
    dtype: DType = float32  # of images, and of what a gradient reads and writes (forward: the epilogue says)

    @property
    def element(self) -> str:
        """The type of the images in memory."""
        return memory_type(self.dtype)

    @property
    def overlaps(self) -> bool:
        """Whether a pixel may be in two windows."""
        return any(d * (k - 1) >= s for k, s, d in zip(self.window, self.stride, self.dilation))

    @property
    def axes(self) -> tuple[Axis, Axis]:
        sizes = ((self.h, self.oh), (self.w, self.ow))
        v, h = (
            Axis(size, out, out, self.stride[i], -self.pad[i][0], self.dilation[i], self.window[i])
            for i, (size, out) in enumerate(sizes)
        )
        return v, h


def forward(machine: Machine, pool: Pool, kind: str, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0) -> Kernel:
    """Kernel (x, y, ...epilogue); ``kind`` is "max" or "mean"."""
    from twofold.backends.cpu.kernels import max_pool

    if kind == "max" and max_pool.fits(pool):
        return max_pool.forward(machine, pool, epilogue, ldx, ldy)
    k = KernelBuilder(machine, f"{kind}_pool", ["x", "y", *ep.params_of(epilogue)])
    emitter = _Emitter(k.f, pool, kind, ldx or pool.c)
    f, ldy, y = k.f, ldy or pool.c, ep.element(epilogue)

    def output(image: Index, row: Index, column: Index, example: int, channel: Index, counts: Sequence[int]) -> None:
        pixel = f.add(f.mul(f.add(f.mul(image, pool.oh), row), pool.ow), column)
        base = f.gep(f.arg("y"), f.dot([(pixel, ldy), (channel, 1)]), y)
        for j, value in enumerate(emitter.reduced(image, row, column, example, channel, counts)):
            site = ep.Site(pixel, f.add(channel, j * machine.lanes), counts[j])
            [value] = ep.finish_column(f, epilogue, [value], [site], 0)
            f.vstore(value, f.gep(base, j * machine.lanes, y), counts[j])

    low, high = f.share(pool.n * pool.oh, f.arg("tid"), f.arg("n"))
    with f.loop(low, high) as loop:
        image, row = f.divmod_chain(loop.index, [pool.n, pool.oh])
        for start, count, example in emitter.columns():
            with f.loop(start, start + count) as column:
                for first, chunks, counts in channel_chunks(pool.c, machine.lanes, 4):
                    with f.loop(0, chunks) as chunk:
                        channel = f.add(f.mul(chunk.index, len(counts) * machine.lanes), first)
                        output(image, row, column.index, example, channel, counts)
    return k.finish(note=f"{kind} pool")


def gradient(machine: Machine, pool: Pool, kind: str, ldx: int = 0, ldg: int = 0, ldd: int = 0) -> Kernel:
    """Kernel (x, g, dx) for "max", (g, dx) for "mean"; ``ldx``, ``ldg``, ``ldd`` are the pixel distances of x, g,
    dx. Only if ``narrows`` may they be in 16 bits. Maxima that ``gathered`` has a kernel for are quicker there.
    """
    names = ["x", "g", "dx"] if kind == "max" else ["g", "dx"]
    k = KernelBuilder(machine, f"{kind}_pool_dx", names)
    f, emitter = k.f, _Emitter(k.f, pool, kind, ldx or pool.c)
    ldg, ldd = ldg or pool.c, ldd or pool.c
    for first, chunks, counts in channel_chunks(pool.c, machine.lanes, max(1, 16 // machine.lanes)):
        low, high = f.share(pool.n * chunks, f.arg("tid"), f.arg("n"))
        with f.loop(low, high) as unit:
            image, chunk = f.divmod_chain(unit.index, [pool.n, chunks])
            channel = f.add(f.mul(chunk, len(counts) * machine.lanes), first)
            dx = f.gep(f.arg("dx"), f.dot([(image, pool.h * pool.w * ldd), (channel, 1)]), pool.element)
            with f.loop(0, pool.h * pool.w) as pixel:
                for j, count in enumerate(counts):
                    zeros = const(vector(pool.element, machine.lanes), 0)
                    f.vstore(zeros, f.gep(dx, f.add(f.mul(pixel.index, ldd), j * machine.lanes), pool.element), count)
            with f.loop(0, pool.oh) as row:
                for start, count, example in emitter.columns():
                    with f.loop(start, start + count) as column:
                        place = f.add(f.mul(f.add(f.mul(image, pool.oh), row.index), pool.ow), column.index)
                        g = f.gep(f.arg("g"), f.dot([(place, ldg), (channel, 1)]), pool.element)
                        each = [(f.gep(g, j * machine.lanes, pool.element), c) for j, c in enumerate(counts)]
                        values = [load_wide(f, at, c, pool.dtype) for at, c in each]
                        emitter.scatter(image, row.index, column.index, example, channel, counts, values, dx, ldd)
    return k.finish(note=f"{kind} pool gradient")


def narrows(machine: Machine, pool: Pool, kind: str) -> bool:
    """Whether the gradient can be stored in 16 bits: its kernel adds up nothing in memory."""
    return not pool.overlaps or (kind == "max" and gathered(machine, pool) is not None)


def gathered(machine: Machine, pool: Pool) -> Any:
    """The module of the kernels that take these windows' gradient of the maximum with an epilogue, if there is one."""
    from twofold.backends.cpu.kernels import max_pool_grad, max_pool_tiles

    if max_pool_tiles.fits(pool):
        return max_pool_tiles
    return max_pool_grad if max_pool_grad.pays(machine, pool) else None


def channel_chunks(channels: int, lanes: int, vectors: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Channels as (first, chunks, lanes in use of each vector of a chunk): whole chunks, then the rest."""
    width = vectors * lanes
    whole, rest = divmod(channels, width)
    chunks = [(0, whole, (lanes,) * vectors)] if whole else []
    if rest:
        chunks.append((whole * width, 1, tuple(min(lanes, rest - at) for at in range(0, rest, lanes))))
    return chunks


class _Emitter:
    """Walks the taps of one window, for a vector or a few of channels."""

    def __init__(self, f: Function, pool: Pool, kind: str, ldx: int):
        self.f, self.pool, self.kind, self.ldx = f, pool, kind, ldx
        self.v, self.h = pool.axes

    def columns(self) -> list[tuple[int, int, int]]:
        """Output columns with the same taps inside, as (first, how many, an example)."""
        return [(start, count, start) for start, _, count in segments(self.h, 1)]

    def taps(
        self,
        row: Index,
        column: Index,
        example: int,
        carry: list[Value],
        body: Callable[[Index, list[Value]], list[Value]],
    ) -> list[Value]:
        """Fold ``body(input pixel within the image, carried)`` over the window's taps inside the image, in order."""
        f, v, h = self.f, self.v, self.h
        inside = [t for t in range(h.taps) if h.valid(example, t)]
        left = f.add(f.mul(column, h.step), h.first)

        def across(line: Index, carried: list[Value]) -> list[Value]:
            start = f.add(f.mul(line, h.inputs), left)
            if len(inside) <= _WIDE:
                for t in inside:
                    carried = body(f.add(start, t * h.spacing), carried)
                return carried
            with f.loop(inside[0], inside[-1] + 1, carry=carried) as loop:
                loop.carry(body(f.add(start, f.mul(loop.index, h.spacing)), loop.carried))
            return loop.results

        low, high = clip(f, v, row)
        with f.loop(low, high, carry=carry) as loop:
            line = f.add(f.add(f.mul(row, v.step), v.first), f.mul(loop.index, v.spacing))
            loop.carry(across(line, loop.carried))
        return loop.results

    def _source(self, image: Index, channel: Index) -> Value:
        f, pool = self.f, self.pool
        return f.gep(f.arg("x"), f.dot([(image, pool.h * pool.w * self.ldx), (channel, 1)]), pool.element)

    def _read(self, x: Value, pixel: Index, counts: Sequence[int]) -> list[Value]:
        f, lanes, pool = self.f, self.f.machine.lanes, self.pool
        places = [f.gep(x, f.add(f.mul(pixel, self.ldx), j * lanes), pool.element) for j in range(len(counts))]
        return [load_wide(f, place, count, pool.dtype) for place, count in zip(places, counts)]

    def reduced(
        self, image: Index, row: Index, column: Index, example: int, channel: Index, counts: Sequence[int]
    ) -> list[Value]:
        """The window's maximum or mean."""
        f, x = self.f, self._source(image, channel)

        def body(pixel: Index, carried: list[Value]) -> list[Value]:
            values = self._read(x, pixel, counts)
            if self.kind == "max":
                return [larger_of(f, a, b) for a, b in zip(carried, values)]
            return [f.fadd(a, b) for a, b in zip(carried, values)]

        start = const(f.vec(), -float("inf") if self.kind == "max" else 0.0)
        result = self.taps(row, column, example, [start] * len(counts), body)
        if self.kind == "max":
            return result
        size = self.size(row, example)
        return [f.fdiv(value, size) for value in result]

    def size(self, row: Index, example: int) -> Value:
        """How many positions this window averages over, as a float."""
        f, pool, v, h = self.f, self.pool, self.v, self.h
        if pool.include_pad:
            top, left = f.add(f.mul(row, v.step), v.first), example * h.step + h.first
            rows = f.imin(v.taps, f.sub(pool.h + pool.pad[0][1], top))
            columns = min(h.taps, pool.w + pool.pad[1][1] - left)
        else:
            low, high = clip(f, v, row)
            rows, columns = f.sub(high, low), sum(h.valid(example, t) for t in range(h.taps))
        return f.cast("sitofp", f.index(f.mul(rows, columns)), "float")

    def scatter(
        self,
        image: Index,
        row: Index,
        column: Index,
        example: int,
        channel: Index,
        counts: Sequence[int],
        values: list[Value],
        dx: Value,
        ldd: int,
    ) -> None:
        """Add one window's gradient to dx: to the first maximum, or evenly."""
        f, lanes = self.f, self.f.machine.lanes
        if self.kind == "max":
            best = self.reduced(image, row, column, example, channel, counts)
            x = self._source(image, channel)
        else:
            size = self.size(row, example)
            values = [f.fdiv(value, size) for value in values]

        def body(pixel: Index, carried: list[Value]) -> list[Value]:
            given, left = carried, carried
            if self.kind == "max":
                here = self._read(x, pixel, counts)
                # `left` is what has not found its maximum yet; x equal to the maximum, or NaN, takes it all
                hits = [_either(f, f.fcmp("oeq", a, b), f.fcmp("uno", a, a)) for a, b in zip(here, best)]
                given = [f.select(hit, g, const(g.type, 0.0)) for hit, g in zip(hits, carried)]
                left = [f.select(hit, const(g.type, 0.0), g) for hit, g in zip(hits, carried)]
            for j, (amount, count) in enumerate(zip(given, counts)):
                place = f.gep(dx, f.add(f.mul(pixel, ldd), j * lanes), self.pool.element)
                total = f.fadd(load_wide(f, place, count, self.pool.dtype), amount)
                store_narrow(f, total, place, count, self.pool.dtype)
            return left

        self.taps(row, column, example, values, body)


def _either(f: Function, a: Value, b: Value) -> Value:
    return f.value(a.type, f"or {a}, {b.name}")


def larger(f: Function, best: Value, x: Value) -> Value:
    """Where x is larger, or NaN, unless best is NaN already."""
    better = f.fcmp("ugt", x, best)
    known = f.fcmp("ord", best, best)
    return f.value(better.type, f"and {better}, {known.name}")


def larger_of(f: Function, best: Value, x: Value) -> Value:
    """The larger one, or the first that is NaN: on x86 a maximum, a comparison and a blend."""
    return f.select(f.fcmp("uno", best, best), best, f.select(f.fcmp("ogt", best, x), best, x))
