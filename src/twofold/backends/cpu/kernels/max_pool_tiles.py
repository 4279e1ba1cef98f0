"""The gradient of max pooling whose windows tile the image: a window's taps are read once and written once.

ALGORITHM
    dx[n, oh*KH + kh, ow*KW + kw, c] = g[n, oh, ow, c] where that is the first tap of its window with the maximum (a NaN
    counts as the largest), else 0; then the epilogue
SCHEDULE
    (image, band of rows of windows) are shared among the threads; vectors run along channels. All taps of a window are in
    registers: who is the first maximum is found while they are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.pool import Pool, channel_chunks, larger
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.llvm.types import load_wide
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST_TAPS = 9
ENOUGH = 16  # units for the threads: images, or images and bands


def fits(pool: Pool) -> bool:
    """Whether the windows tile the image, and are few enough taps to be in registers."""
    whole = (pool.oh * pool.window[0], pool.ow * pool.window[1]) == (pool.h, pool.w)
    taps = pool.window[0] * pool.window[1] <= MOST_TAPS
    return whole and taps and pool.window == pool.stride and pool.dilation == (1, 1) and not any(map(any, pool.pad))


def parts(pool: Pool) -> int:
    """Parts that an epilogue's sums are gathered in."""
    return pool.n * _bands(pool)


def _bands(pool: Pool) -> int:
    return min(pool.oh, -(-ENOUGH // pool.n))


def gradient(
    machine: Machine, pool: Pool, epilogue: ep.Epilogue = (), ldx: int = 0, ldg: int = 0, ldd: int = 0
) -> Kernel:
    """Kernel (x, g, dx, ...epilogue); the ld's are the pixel distances of x, g and dx."""
    k = KernelBuilder(machine, "max_pool_dx", ["x", "g", "dx", *ep.params_of(epilogue)])
    f, emitter = k.f, _Emitter(k.f, pool, epilogue, ldx or pool.c, ldg or pool.c, ldd or pool.c)
    bands = _bands(pool)
    chunks = channel_chunks(pool.c, machine.lanes, 1)
    with f.loop(*f.share(pool.n * bands, f.arg("tid"), f.arg("n"))) as unit:
        image, band = f.divmod_chain(unit.index, [pool.n, bands])
        for step in epilogue:
            for first, count, (lanes,) in chunks:
                with f.loop(0, count) as chunk:
                    step.begin(f, unit.index, f.add(f.mul(chunk.index, machine.lanes), first), lanes)
        low, high = f.div(f.mul(band, pool.oh), bands), f.div(f.mul(f.add(band, 1), pool.oh), bands)
        with f.loop(low, high) as row, f.loop(0, pool.ow) as column:
            for first, count, (lanes,) in chunks:
                with f.loop(0, count) as chunk:
                    channel = f.add(f.mul(chunk.index, machine.lanes), first)
                    emitter.window(unit.index, image, row.index, column.index, channel, lanes)
    return k.finish(note="max pool gradient, window by window", once=True)


class _Emitter:
    def __init__(self, f: Function, pool: Pool, epilogue: ep.Epilogue, ldx: int, ldg: int, ldd: int):
        self.f, self.pool, self.epilogue = f, pool, epilogue
        self.ldx, self.ldg, self.ldd = ldx, ldg, ldd

    def window(self, part: Index, image: Index, row: Index, column: Index, channel: Index, count: int) -> None:
        """One vector of channels of one window."""
        f, pool = self.f, self.pool
        (kh, kw), size = pool.window, pool.h * pool.w
        corner = f.dot([(image, size), (row, kh * pool.w), (column, kw)])
        taps = [i * pool.w + j for i in range(kh) for j in range(kw)]
        x = f.gep(f.arg("x"), f.add(f.mul(corner, self.ldx), channel), pool.element)
        values = [load_wide(f, f.gep(x, t * self.ldx, pool.element), count, pool.dtype) for t in taps]
        place = f.dot([(image, pool.oh * pool.ow), (row, pool.ow), (column, 1)])
        g = load_wide(f, f.gep(f.arg("g"), f.add(f.mul(place, self.ldg), channel), pool.element), count, pool.dtype)
        given = self._given(values, g)
        sites = [ep.Site(f.add(corner, t), channel, count) for t in taps]
        element = ep.element(self.epilogue)
        dx = f.gep(f.arg("dx"), f.add(f.mul(corner, self.ldd), channel), element)
        for t, value in zip(taps, ep.finish_column(f, self.epilogue, given, sites, part)):
            f.vstore(value, f.gep(dx, t * self.ldd, element), count)

    def _given(self, values: Sequence[Value], g: Value) -> list[Value]:
        """What each tap of a window receives: a tap that is larger than all before it takes ``g`` from them."""
        f, zero = self.f, const(g.type, 0.0)
        best, beaten = values[0], []
        for value in values[1:]:
            better = larger(f, best, value)
            best = f.select(better, value, best)
            beaten.append(better)
        given, left = [], g
        for better in reversed(beaten):  # the last that is better than those before is the first maximum
            given.append(f.select(better, left, zero))
            left = f.select(better, zero, left)
        return [left, *reversed(given)]
