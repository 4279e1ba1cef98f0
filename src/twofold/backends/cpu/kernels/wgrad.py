"""Gradient of a convolution with respect to its weights.

ALGORITHM
    dw[o, i, kh, kw] = sum over n, oh, ow of x[n, oh*s + kh*d - p, ow*s + kw*d - p, i] * dy[n, oh, ow, o]
SCHEDULE
    A tile is MR inputs x NV vectors of outputs in registers (the forward tile with inputs as its pixels), reduced over
    the output positions. The images go by in chunks: rows of one image, or several small images. Of each chunk all
    threads together copy x into strips of MR channels (with its padding as zeros) and dy into strips of NV vectors;
    barrier; then units (group, strip of dy, strip of x, kh, kw) are shared out and add the chunk to the result;
    barrier. Every weight has one owner and one order of summation.
    The copy (1-5 % of the time) makes the strips dense: a strip of each, about 90 bytes for a pixel on AVX2, fits L1
    for all taps, where channels-last rows of many channels would meet in a few cache sets. A chunk fits half of L2.
    With few input channels (stems) a tile takes several neighbouring kw: together they are contiguous in the strip.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.backends.cpu.kernels.shapes import Conv, forward_axes, split
from twofold.backends.cpu.kernels.tile import Operands, accumulate, flatten, shaped
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder


@dataclass(frozen=True)
class _Strips:
    """Strips of x of one width: ``inputs`` channels from ``first + k*inputs`` on, for k below ``count``."""

    first: int
    count: int
    inputs: int


@dataclass(frozen=True)
class _Space:
    """Units of one code variant: a kind of block of outputs, a kind of strip, ``taps`` neighbouring kw."""

    first_block: int
    blocks: int
    outs: int
    strips: _Strips
    first_tap: int
    tap_groups: int
    taps: int


def weight_gradient(machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0) -> Kernel:
    """Kernel (x, dy, dw, workspace): ``dw`` in forward ``packed`` order (its padding is set to zero)."""
    return _Builder(machine, conv, packed, ldx or conv.c, ldy or conv.o).kernel()


def chunk(machine: Machine, conv: Conv, tile: int, width: int) -> tuple[int, int]:
    """(images, output rows) of a chunk: its copy fits half of L2, a strip of x and one of dy three quarters of L1."""
    by_l2 = machine.l2 // 2 // (4 * (conv.c * conv.stride[0] * conv.stride[1] + conv.o))
    by_l1 = machine.l1 * 3 // 4 // (4 * (tile * conv.stride[1] + width))
    pixels = max(32, min(by_l2, by_l1))
    rows = max(1, min(conv.oh, pixels // conv.ow))
    rows = split(conv.oh, rows)[0]
    images = 1
    if rows == conv.oh:
        images = max(i for i in range(1, conv.n + 1) if conv.n % i == 0 and (i == 1 or i * rows * conv.ow <= pixels))
    return images, rows


def _runs(sizes: list[int]) -> list[tuple[int, int, int]]:
    """Equal neighbours as (start, how many, size)."""
    runs: list[tuple[int, int, int]] = []
    at = 0
    for size in sizes:
        if runs and runs[-1][2] == size:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, size)
        else:
            runs.append((at, 1, size))
        at += size
    return runs


class _Builder:
    def __init__(self, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int):
        self.machine, self.conv, self.packed, self.ldx, self.ldy = machine, conv, packed, ldx, ldy
        self.v, self.h = forward_axes(conv)
        vectors = -(-min(packed.outs, packed.block) // machine.lanes)
        most = machine.accumulators(vectors) // vectors
        self.together = max(1, min(conv.kw, most // conv.cg)) if conv.dilation[1] == 1 else 1
        self.strips = [_Strips(*run) for run in _runs(split(conv.cg, most))]
        self.images, self.rows = chunk(machine, conv, most, packed.block)
        self.in_rows = (self.rows - 1) * conv.stride[0] + (conv.kh - 1) * conv.dilation[0] + 1
        self.in_columns = (conv.ow - 1) * conv.stride[1] + (conv.kw - 1) * conv.dilation[1] + 1
        self.x_plane = self.images * self.in_rows * self.in_columns  # pixels of a strip
        self.y_plane = self.images * self.rows * conv.ow
        self.y_width = packed.whole * packed.block + packed.rest_width  # elements for a pixel of a group
        self.y_at = -(-conv.c * self.x_plane // 16) * 16
        self.k = KernelBuilder(machine, "conv_dw", ["x", "dy", "dw", "workspace"])
        self.f: Function = self.k.f

    def kernel(self) -> Kernel:
        f, conv = self.f, self.conv
        spaces = self._spaces()
        for space in spaces:
            self._clear(space)
        bands = -(-conv.oh // self.rows)
        with f.loop(0, conv.n // self.images * bands) as part:
            group, band = f.divmod_chain(part.index, [conv.n // self.images, bands])
            image, row = f.mul(group, self.images), f.mul(band, self.rows)
            rows = f.imin(self.rows, f.sub(conv.oh, row)) if conv.oh % self.rows else self.rows
            self._copy_x(image, row)
            self._copy_dy(image, row, rows)
            self.k.barrier()
            for space in spaces:
                self._units(space, rows)
            self.k.barrier()
        size = 4 * (self.y_at + conv.groups * self.y_width * self.y_plane)
        note = f"direct weight gradient, {self.images} images of {self.rows} rows at a time"
        return self.k.finish(flops=conv.flops, workspace=size, note=note)

    def _spaces(self) -> list[_Space]:
        whole, rest = divmod(self.conv.kw, self.together)
        taps = [(0, whole, self.together)] + ([(whole * self.together, 1, rest)] if rest else [])
        return [
            _Space(*kind, strips, *group) for kind in self.packed.kinds() for group in taps for strips in self.strips
        ]

    def _share(self, total: int) -> tuple[Index, Index]:
        return self.f.share(total, self.f.arg("tid"), self.f.arg("n"))

    # ---- copies -----------------------------------------------------------------------------------------------------
    def _copy_x(self, image: Index, row: Index) -> None:
        """The rows of x that the output rows from ``row`` on read, as strips, padding included."""
        f, conv = self.f, self.conv
        left = conv.pad[1][0]
        right = min(self.in_columns, left + conv.w)
        top = f.sub(f.mul(row, conv.stride[0]), conv.pad[0][0])
        with f.loop(*self._share(self.images * self.in_rows)) as loop:
            which, line = f.divmod_chain(loop.index, [self.images, self.in_rows])
            source_line = f.add(top, line)
            inside = f.icmp("ult", f.index(source_line), conv.h)
            start = f.mul(f.add(f.mul(f.add(image, which), conv.h), source_line), conv.w)
            source = f.gep(f.arg("x"), f.mul(f.sub(start, left), self.ldx))
            at = f.mul(loop.index, self.in_columns)

            def copy() -> list[Value]:
                for low, high, zero in ((0, left, True), (left, right, False), (right, self.in_columns, True)):
                    self._copy_columns(source, at, low, high, zero)
                return []

            def clear() -> list[Value]:
                self._copy_columns(source, at, 0, self.in_columns, True)
                return []

            f.choose(inside, copy, clear)

    def _copy_columns(self, source: Value, at: Index, low: int, high: int, zero: bool) -> None:
        f, lanes = self.f, self.machine.lanes
        if low >= high:
            return
        with f.loop(low, high) as column:
            for strips in self.strips:
                with f.loop(0, self.conv.groups * strips.count) as strip:
                    group, number = f.divmod_chain(strip.index, [self.conv.groups, strips.count])
                    channel = f.dot([(group, self.conv.cg), (number, strips.inputs), (1, strips.first)])
                    pixel = f.add(at, column.index)
                    target = f.dot([(channel, self.x_plane), (pixel, strips.inputs)])
                    for first in range(0, strips.inputs, lanes):
                        count = min(lanes, strips.inputs - first)
                        value = const(f.vec(), 0.0)
                        if not zero:
                            place = f.dot([(column.index, self.ldx), (channel, 1)])
                            value = f.vload(f.gep(source, f.add(place, first)), count)
                        f.vstore(value, f.gep(f.arg("workspace"), f.add(target, first)), count)

    def _copy_dy(self, image: Index, row: Index, rows: Index) -> None:
        """The output rows of dy as strips of a block of outputs, zeros beyond the last output."""
        f, conv, packed, lanes = self.f, self.conv, self.packed, self.machine.lanes
        with f.loop(*f.share(f.mul(rows, self.images), f.arg("tid"), f.arg("n"))) as loop:
            which = f.div(loop.index, rows)
            line = f.sub(loop.index, f.mul(which, rows))
            start = f.mul(f.add(f.mul(f.add(image, which), conv.oh), f.add(row, line)), conv.ow)
            at = f.mul(f.add(f.mul(which, self.rows), line), conv.ow)
            for first, count, outs in packed.kinds():
                width = -(-outs // lanes) * lanes
                with f.loop(0, conv.ow) as column, f.loop(0, conv.groups * count) as strip:
                    group, block = f.divmod_chain(strip.index, [conv.groups, count])
                    block = f.add(block, first)
                    channel = f.dot([(group, conv.og), (block, packed.block)])
                    source = f.dot([(f.add(start, column.index), self.ldy), (channel, 1)])
                    target = f.add(self._y_strip(group, block), f.mul(f.add(at, column.index), width))
                    for lane in range(0, width, lanes):
                        value = f.vload(f.gep(f.arg("dy"), f.add(source, lane)), min(lanes, outs - lane))
                        f.vstore(value, f.gep(f.arg("workspace"), f.add(target, lane)))

    def _y_strip(self, group: Index, block: Index) -> Index:
        f = self.f
        width = f.dot([(group, self.y_width), (block, self.packed.block)])
        return f.add(self.y_at, f.mul(width, self.y_plane))

    # ---- units ------------------------------------------------------------------------------------------------------
    def _decode(self, space: _Space, unit: Index) -> tuple[Index, Index, Index, Index, Index]:
        """(group, block, first input, kh, kw) of a unit; taps run fastest, so that a strip meets them all in L1."""
        f = self.f
        box = [self.conv.groups, space.blocks, space.strips.count, self.conv.kh, space.tap_groups]
        group, block, strip, kh, kw = f.divmod_chain(unit, box)
        first = f.add(f.mul(strip, space.strips.inputs), space.strips.first)
        return group, f.add(block, space.first_block), first, kh, f.add(f.mul(kw, space.taps), space.first_tap)

    def _units_of(self, space: _Space) -> tuple[Index, Index]:
        box = (self.conv.groups, space.blocks, space.strips.count, self.conv.kh, space.tap_groups)
        total = 1
        for extent in box:
            total *= extent
        return self._share(total)

    def _places(self, space: _Space, unit: tuple[Index, ...]) -> list[list[Value]]:
        """Where the tile's vectors lie in the result: [kw and input][vector]."""
        f, packed, lanes = self.f, self.packed, self.machine.lanes
        group, block, first, kh, kw = unit
        width = -(-space.outs // lanes) * lanes
        row = f.add(f.mul(f.add(f.mul(kh, packed.kw), kw), packed.ins), first)
        base = f.gep(f.arg("dw"), f.add(packed.panel(f, group, block), f.mul(row, width)))
        return [
            [f.gep(base, (t * packed.ins + i) * width + at) for at in range(0, width, lanes)]
            for t in range(space.taps)
            for i in range(space.strips.inputs)
        ]

    def _clear(self, space: _Space) -> None:
        """Set this thread's part of the result to zero."""
        f = self.f
        with f.loop(*self._units_of(space)) as loop:
            for place in flatten(self._places(space, self._decode(space, loop.index))):
                f.vstore(const(f.vec(), 0.0), place)

    def _units(self, space: _Space, rows: Index) -> None:
        """Add the chunk to all units of this thread."""
        f, conv, lanes = self.f, self.conv, self.machine.lanes
        inputs, vectors = space.strips.inputs, -(-space.outs // lanes)
        width = vectors * lanes
        with f.loop(*self._units_of(space)) as loop:
            group, block, first, kh, kw = unit = self._decode(space, loop.index)
            places = self._places(space, unit)
            x = f.gep(f.arg("workspace"), f.mul(f.add(f.mul(group, conv.cg), first), self.x_plane))
            corner = f.add(f.mul(f.mul(kh, conv.dilation[0]), self.in_columns), f.mul(kw, conv.dilation[1]))
            x = f.gep(x, f.mul(corner, inputs))
            dy = f.gep(f.arg("workspace"), self._y_strip(group, block))
            tile = [[f.vload(place) for place in line] for line in places]
            with f.loop(0, f.mul(rows, self.images), carry=flatten(tile)) as loop_rows:
                which = f.div(loop_rows.index, rows) if self.images > 1 else 0
                line = f.sub(loop_rows.index, f.mul(which, rows)) if self.images > 1 else loop_rows.index
                x_line = f.add(f.mul(which, self.in_rows), f.mul(line, conv.stride[0]))
                y_line = f.add(f.mul(which, self.rows), line)
                ops = Operands(
                    f.gep(x, f.mul(x_line, self.in_columns * inputs)),
                    f.gep(dy, f.mul(y_line, conv.ow * width)),
                    conv.stride[1] * inputs,
                    1,
                    width,
                    (lanes,) * vectors,
                )
                inner = shaped(loop_rows.carried, vectors)
                loop_rows.carry(flatten(accumulate(f, inner, ops, conv.ow, range(len(tile)), 2)))
            for value, place in zip(loop_rows.results, flatten(places)):
                f.vstore(value, place)
