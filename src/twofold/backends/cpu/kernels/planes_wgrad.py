"""Weight gradient of a convolution from one channel to few: vectors run along pixels and outputs, so that no lane is empty.

ALGORITHM
    dw[o, kh, kw] = sum over n, oh, ow of x[n, oh + kh - p, ow + kw - p] * dy[n, oh, ow, o]
SCHEDULE
    A row of dy, channels-last, is a line of pixels times outputs, multiplied vector by vector as it lies; x is *spread*: every
    pixel is there once for each output. Vectors a ``period`` apart have the same outputs in the same lanes (6 outputs, 16
    lanes: 8 pixels are 3 vectors). A tile is up to 4 rows of dy by one place in the period, with the sums of all taps in
    registers: a vector of x meets up to 4 of dy. Rows go by in bands whose x stays in L1 for the period's places. The images
    are cut into parts that are summed apart, lane by lane, and joined at the end in their order.
"""

from __future__ import annotations

import functools
import itertools
import math

from twofold.backends.cpu.kernels.shapes import Conv, split
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

MOST = 8  # outputs: more fill half a vector
ROWS = 4  # of a tile
PARTS = 32  # enough to share them evenly among several threads


def fits(machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0) -> bool:
    """Whether the kernel takes a convolution whose pixels lie so far apart."""
    plain = conv.stride == conv.dilation == (1, 1) and conv.c == 1 and (ldx or 1) == 1
    dense = conv.o <= MOST and (ldy or conv.o) == conv.o and packed.whole + bool(packed.rest) == 1
    return plain and dense and packed.taps + ROWS + 2 <= machine.registers and conv.ow * conv.o >= machine.lanes


def weight_gradient(machine: Machine, conv: Conv, packed: Packed) -> Kernel:
    """Kernel (x, dy, dw, workspace, scratch): ``dw`` in forward ``packed`` order (its padding is set to zero)."""
    return _Builder(machine, conv, packed).kernel()


class _Builder:
    def __init__(self, machine: Machine, conv: Conv, packed: Packed):
        self.machine, self.conv, self.packed, self.lanes = machine, conv, packed, machine.lanes
        shared = math.gcd(conv.o, self.lanes)
        self.period, self.group = conv.o // shared, self.lanes // shared  # vectors, and pixels in them
        self.vectors = -(-conv.ow * conv.o // self.lanes)  # of a row of dy
        self.y_pitch = conv.ow * conv.o
        self.x_vectors = -(-(self.vectors * self.lanes + (conv.kw - 1) * conv.o) // self.lanes)
        self.x_pitch = self.x_vectors * self.lanes
        self.line = -(-self.x_vectors // self.period) * self.group  # pixels of a padded row
        self.rows = max(r for r in range(1, ROWS + 1) if conv.oh % r == 0)
        tiles, above = conv.oh // self.rows, conv.kh - 1  # rows of x that a band reads beside its own
        room = machine.l1 // 4 - above * self.x_pitch
        self.tiles = split(tiles, max(1, min(tiles, room // (self.rows * self.x_pitch))))[0]
        self.bands = -(-tiles // self.tiles)
        band = self.tiles * self.rows
        self.x_at = -(-(band + above) * self.line // self.lanes) * self.lanes
        self.scratch = 4 * -(-(self.x_at + (band + above) * self.x_pitch) // 16) * 16
        self.parts, self.part_size = min(conv.n, PARTS), self.period * packed.taps * self.lanes
        self.k = KernelBuilder(machine, "conv_planes_dw", ["x", "dy", "dw", "workspace", "scratch"])
        self.f: Function = self.k.f
        self.own = self.f.gep(self.f.arg("scratch"), self.f.mul(self.f.arg("tid"), self.scratch), "i8")

    def kernel(self) -> Kernel:
        f, conv = self.f, self.conv
        self._clear(self.own, self.x_at)
        with f.loop(*f.share(self.parts, f.arg("tid"), f.arg("n"))) as part:
            sums = f.gep(f.arg("workspace"), f.mul(part.index, self.part_size))
            self._clear(sums, self.part_size)
            first, end = f.share(conv.n, part.index, self.parts)
            with f.loop(first, end) as image, f.loop(0, self.bands) as band:
                low = f.mul(band.index, self.tiles)
                tiles = f.imin(self.tiles, f.sub(conv.oh // self.rows, low))
                self._band(sums, image.index, f.mul(low, self.rows), tiles)
        self.k.barrier()
        self._join()
        note = f"vectors of pixels and outputs, {self.tiles * self.rows} rows at a time, {self.parts} parts"
        return self.k.finish(flops=conv.flops, workspace=4 * self.parts * self.part_size, scratch=self.scratch, note=note)

    def _clear(self, place: Value, size: int) -> None:
        f = self.f
        with f.loop(0, size, self.lanes) as loop:
            f.vstore(const(f.vec(), 0.0), f.gep(place, loop.index))

    def _band(self, sums: Value, image: Index, row: Index, tiles: Index) -> None:
        """Add the products of some tiles of rows, from ``row`` of an image on."""
        f, conv, taps = self.f, self.conv, self.packed.taps
        rows = f.mul(tiles, self.rows)
        self._spread_x(image, row, f.add(rows, conv.kh - 1))
        first_dy = f.gep(f.arg("dy"), f.mul(f.add(f.mul(image, conv.oh), row), self.y_pitch))
        with f.loop(0, self.period) as place:
            start = f.gep(sums, f.mul(place.index, taps * self.lanes))
            places = [f.gep(start, tap * self.lanes) for tap in range(taps)]
            at = f.mul(place.index, self.lanes)
            vectors = f.div(f.sub(self.vectors + self.period - 1, place.index), self.period)
            with f.loop(0, tiles, carry=[f.vload(p) for p in places]) as tile:
                x = f.gep(self.own, f.add(f.mul(tile.index, self.rows * self.x_pitch), f.add(at, self.x_at)))
                dy = f.gep(first_dy, f.add(f.mul(tile.index, self.rows * self.y_pitch), at))
                with f.loop(0, vectors, carry=tile.carried) as vector:
                    along = f.mul(vector.index, self.period * self.lanes)
                    right = self._vectors_of(f.gep(dy, along), f.add(along, at))
                    vector.carry(self._products(vector.carried, f.gep(x, along), right))
                tile.carry(vector.results)
            for value, p in zip(tile.results, places):
                f.vstore(value, p)

    def _vectors_of(self, dy: Value, at: Index) -> list[Value]:
        """A vector of each row of a tile, ``at`` elements after their first: zeros beyond the last."""
        f, rest = self.f, self.y_pitch % self.lanes
        load = lambda count: [f.vload(f.gep(dy, r * self.y_pitch), count) for r in range(self.rows)]
        if not rest:
            return load(self.lanes)
        last = f.icmp("eq", f.index(at), self.y_pitch - rest)
        return f.choose(last, lambda: load(rest), lambda: load(self.lanes))

    def _products(self, sums: list[Value], x: Value, right: list[Value]) -> list[Value]:
        """The sums of all taps with the products of a tile's vectors of dy."""
        f, conv, sums = self.f, self.conv, list(sums)
        for line, kw in itertools.product(range(self.rows + conv.kh - 1), range(conv.kw)):
            value = f.vload(f.gep(x, line * self.x_pitch + kw * conv.o))
            for r, g in enumerate(right):
                if 0 <= line - r < conv.kh:
                    tap = (line - r) * conv.kw + kw
                    sums[tap] = f.fma(value, g, sums[tap])
        return sums

    # ---- copies -------------------------------------------------------------------------------------------------------
    def _spread_x(self, image: Index, row: Index, rows: Index) -> None:
        """Rows of the padded image from ``row`` on: as they are, between the zeros at their ends, then spread."""
        f, conv = self.f, self.conv
        with f.loop(0, rows) as loop:
            source = f.sub(f.add(row, loop.index), conv.pad[0][0])
            line = f.gep(self.own, f.add(f.mul(loop.index, self.line), conv.pad[1][0]))
            x = f.gep(f.arg("x"), f.mul(f.add(f.mul(image, conv.h), source), conv.w))

            def copy(x: Value | None, line: Value = line) -> list[Value]:
                self._copy(x, line, conv.w)
                return []

            inside = f.icmp("ult", f.index(source), conv.h)
            f.choose(inside, functools.partial(copy, x), functools.partial(copy, None))
        whole, rest = divmod(self.x_vectors, self.period)
        with f.loop(0, rows) as loop:
            line = f.gep(self.own, f.mul(loop.index, self.line))
            target = f.gep(self.own, f.add(f.mul(loop.index, self.x_pitch), self.x_at))
            with f.loop(0, whole) as group:
                self._spread(line, target, group.index, self.period)
            self._spread(line, target, whole, rest)

    def _spread(self, line: Value, target: Value, group: Index, vectors: int) -> None:
        """The first vectors of a group of pixels, each as often as there are outputs."""
        f, lanes = self.f, self.lanes
        pixels = f.vload(f.gep(line, f.mul(group, self.group)), self.group)
        for j in range(vectors):
            which = [(j * lanes + lane) // self.conv.o for lane in range(lanes)]
            f.vstore(f.shuffle(pixels, None, which), f.gep(target, f.add(f.mul(group, self.period * lanes), j * lanes)))

    def _copy(self, source: Value | None, target: Value, size: int) -> None:
        """``size`` elements, or as many zeros."""
        f, lanes = self.f, self.lanes
        for at in range(0, size, lanes):
            count = min(lanes, size - at)
            f.vstore(f.vload(f.gep(source, at), count) if source else const(f.vec(), 0.0), f.gep(target, at), count)

    # ---- the end ------------------------------------------------------------------------------------------------------
    def _join(self) -> None:
        """For every tap the sum over the parts, then over the pixels of a group."""
        f, conv, packed, lanes = self.f, self.conv, self.packed, self.lanes
        width = packed.whole * packed.block + packed.rest_width
        stack = f.stack(self.period * lanes, "float")
        with f.loop(*f.share(packed.taps, f.arg("tid"), f.arg("n"))) as tap:
            first = f.gep(f.arg("workspace"), f.mul(tap.index, lanes))
            with f.loop(0, self.parts, carry=[const(f.vec(), 0.0)] * self.period) as part:
                own = f.gep(first, f.mul(part.index, self.part_size))
                values = [f.vload(f.gep(own, j * packed.taps * lanes)) for j in range(self.period)]
                part.carry([f.fadd(total, value) for total, value in zip(part.carried, values)])
            for j, total in enumerate(part.results):
                f.vstore(total, f.gep(stack, j * lanes))
            total = const(f.vec(), 0.0)
            for pixel in range(self.group):
                total = f.fadd(total, f.vload(f.gep(stack, pixel * conv.o), conv.o))
            f.vstore(total, f.gep(f.arg("dw"), f.mul(tap.index, width)), width)
