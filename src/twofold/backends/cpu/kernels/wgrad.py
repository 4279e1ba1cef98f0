"""Gradient of a convolution with respect to its weights.

ALGORITHM
    dw[o, i, kh, kw] = sum over n, oh, ow of x[n, oh*s + kh*d - p, ow*s + kw*d - p, i] * dy[n, oh, ow, o]
SCHEDULE
    A tile is MR inputs x NV vectors of outputs in registers (the forward tile with inputs as its pixels), reduced over
    the output positions. The images go by in chunks: rows of one image, or several small images. Of each chunk all
    threads together copy x into strips of MR channels (with its padding as zeros) and dy into strips of NV vectors;
    barrier; then units (group, strip of dy, strip of x, kh, kw) are shared out and add the chunk to the result;
    barrier. Every weight has one owner and one order of summation.
    The copy makes the strips dense: a strip of each, about 90 bytes for a pixel on AVX2, fits L1 for all taps, where
    channels-last rows of many channels would meet in a few cache sets. It takes GROUP pixels of a strip at a time, so
    that it reads and writes whole vectors and whole lines.
    A chunk fits half of L2, but is never so small that loading and storing the tiles would show.
    With few input channels (stems) a tile takes several neighbouring kw: together they are contiguous in the strip.
    For 1x1 kernels only the pixels that the stride meets are copied, and a chunk is one loop over them.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.backends.cpu.kernels.shapes import Conv, forward_axes, runs, split
from twofold.backends.cpu.kernels.tile import Operands, Tile, accumulate, flatten, shaped
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

GROUP = 8  # pixels of a strip copied together
SHORTEST = 128  # pixels of a chunk, if there are as many


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
    vertical, horizontal = copied_strides(conv)
    by_l2 = machine.l2 // 2 // (4 * (conv.c * vertical * horizontal + conv.o))
    by_l1 = machine.l1 * 3 // 4 // (4 * (tile * horizontal + width))
    pixels = min(max(SHORTEST, by_l2), by_l1)
    rows = max(1, min(conv.oh, pixels // conv.ow))
    rows = split(conv.oh, rows)[0]
    images = 1
    if rows == conv.oh:
        images = max(i for i in range(1, conv.n + 1) if conv.n % i == 0 and (i == 1 or i * rows * conv.ow <= pixels))
    return images, rows


def copied_strides(conv: Conv) -> tuple[int, int]:
    """The strides within the copy of x: pixels between those that a 1-wide kernel meets are left out of it."""
    return (conv.stride[0] if conv.kh > 1 else 1, conv.stride[1] if conv.kw > 1 else 1)


def _picked(f: Function, vectors: dict[tuple[int, int], Value], places: list[tuple[tuple[int, int], int]]) -> Value:
    """A vector of lanes of other vectors: of the vector and lane that ``places`` tell for each of its own."""
    lanes = f.machine.lanes
    keys = list(dict.fromkeys(key for key, _ in places))
    result = vectors[keys[0]]
    at = [lane if key == keys[0] else -1 for key, lane in places]
    for key in keys[1:]:
        picks = [lanes + lane if key == own else old for old, (own, lane) in zip(at, places)]
        result = f.shuffle(result, vectors[key], picks + [-1] * (lanes - len(picks)))
        at = [i if pick >= 0 else -1 for i, pick in enumerate(picks)]
    if len(keys) == 1:
        result = f.shuffle(result, None, at + [-1] * (lanes - len(at)))
    return result


class _Builder:
    def __init__(self, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int):
        self.machine, self.conv, self.packed, self.ldx, self.ldy = machine, conv, packed, ldx, ldy
        self.v, self.h = forward_axes(conv)
        vectors = -(-min(packed.outs, packed.block) // machine.lanes)
        most = machine.accumulators(vectors) // vectors
        self.together = max(1, min(conv.kw, most // conv.cg)) if conv.dilation[1] == 1 else 1
        self.strips = [_Strips(*run) for run in runs(split(conv.cg, most))]
        self.images, self.rows = chunk(machine, conv, most, packed.block)
        self.strides = copied_strides(conv)
        self.in_rows = (self.rows - 1) * self.strides[0] + (conv.kh - 1) * conv.dilation[0] + 1
        self.in_columns = (conv.ow - 1) * self.strides[1] + (conv.kw - 1) * conv.dilation[1] + 1
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
        steps = [stride // copied for stride, copied in zip(conv.stride, self.strides)]
        columns = [c for c in range(self.in_columns) if 0 <= c * steps[1] - conv.pad[1][0] < conv.w]
        left, right = (columns[0], columns[-1] + 1) if columns else (0, 0)
        top = f.sub(f.mul(row, conv.stride[0]), conv.pad[0][0])
        with f.loop(*self._share(self.images * self.in_rows)) as loop:
            which, line = f.divmod_chain(loop.index, [self.images, self.in_rows])
            source_line = f.add(top, f.mul(line, steps[0]))
            inside = f.icmp("ult", f.index(source_line), conv.h)
            start = f.mul(f.add(f.mul(f.add(image, which), conv.h), source_line), conv.w)
            source = f.gep(f.arg("x"), f.mul(f.sub(start, conv.pad[1][0]), self.ldx))
            at = f.mul(loop.index, self.in_columns)

            def copy() -> list[Value]:
                self._copy_columns(None, at, 0, left, 0)
                self._copy_columns(source, at, left, right, steps[1] * self.ldx)
                self._copy_columns(None, at, right, self.in_columns, 0)
                return []

            def clear() -> list[Value]:
                self._copy_columns(None, at, 0, self.in_columns, 0)
                return []

            f.choose(inside, copy, clear)

    def _copy_columns(self, source: Value | None, at: Index, low: int, high: int, step: int) -> None:
        """Columns [low, high) of all strips: ``step`` elements apart in ``source``, or zeros without one."""
        f = self.f
        whole = low + (high - low) // GROUP * GROUP
        if low < whole:
            with f.loop(low, whole, GROUP) as column:
                self._copy_group(source, at, column.index, GROUP, step)
        if whole < high:
            self._copy_group(source, at, whole, high - whole, step)

    def _copy_group(self, source: Value | None, at: Index, column: Index, pixels: int, step: int) -> None:
        """``pixels`` neighbouring columns of all strips."""
        f, conv = self.f, self.conv
        for strips in self.strips:
            # a whole vector may be read from all strips but those that end within a vector of the last channel
            safe = max(0, min(strips.count, (conv.cg - self.machine.lanes - strips.first) // strips.inputs + 1))
            if strips.inputs > self.machine.lanes:
                safe = 0
            for first, count, wide in ((0, safe, True), (safe, strips.count - safe, False)):
                if not count:
                    continue
                with f.loop(0, conv.groups * count) as strip:
                    group, number = f.divmod_chain(strip.index, [conv.groups, count])
                    number = f.add(number, first)
                    channel = f.dot([(group, conv.cg), (number, strips.inputs), (1, strips.first)])
                    target = f.dot([(channel, self.x_plane), (f.add(at, column), strips.inputs)])
                    target = f.gep(f.arg("workspace"), target)
                    begin = None if source is None else f.gep(source, f.dot([(column, step), (channel, 1)]))
                    self._copy_pixels(begin, target, pixels, strips.inputs, step, wide)

    def _copy_pixels(
        self, source: Value | None, target: Value, pixels: int, inputs: int, step: int, wide: bool
    ) -> None:
        """``inputs`` channels of each pixel, one behind the other; ``wide``: whole vectors may be read."""
        f, lanes = self.f, self.machine.lanes

        def vector(p: int, first: int) -> Value:
            count = lanes if wide else min(lanes, inputs - first)
            return const(f.vec(), 0.0) if source is None else f.vload(f.gep(source, p * step + first), count)

        read = {(p, first): vector(p, first) for p in range(pixels) for first in range(0, inputs, lanes)}
        places = [((p, c // lanes * lanes), c % lanes) for p in range(pixels) for c in range(inputs)]
        for at in range(0, len(places), lanes):
            piece = places[at : at + lanes]
            f.vstore(_picked(f, read, piece), f.gep(target, at), len(piece))

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
            x_step = self.strides[1] * inputs
            if (conv.kh, conv.kw) == (1, 1):  # all pixels of the chunk follow each other
                ops = Operands(x, dy, x_step, 1, width, (lanes,) * vectors)
                pixels = f.mul(f.mul(rows, self.images), conv.ow)
                results = flatten(accumulate(f, tile, ops, pixels, range(len(tile)), 2))
            else:
                results = self._lines(tile, x, dy, rows, x_step, width)
            for value, place in zip(results, flatten(places)):
                f.vstore(value, place)

    def _lines(self, tile: Tile, x: Value, dy: Value, rows: Index, x_step: int, width: int) -> list[Value]:
        """The tile and the products of all rows of the chunk."""
        f, conv, vectors = self.f, self.conv, len(tile[0])
        with f.loop(0, f.mul(rows, self.images), carry=flatten(tile)) as loop:
            which = f.div(loop.index, rows) if self.images > 1 else 0
            line = f.sub(loop.index, f.mul(which, rows)) if self.images > 1 else loop.index
            x_line = f.add(f.mul(which, self.in_rows), f.mul(line, self.strides[0]))
            y_line = f.add(f.mul(which, self.rows), line)
            ops = Operands(
                f.gep(x, f.mul(x_line, self.in_columns * (x_step // self.strides[1]))),
                f.gep(dy, f.mul(y_line, conv.ow * width)),
                x_step,
                1,
                width,
                (self.machine.lanes,) * vectors,
            )
            inner = shaped(loop.carried, vectors)
            loop.carry(flatten(accumulate(f, inner, ops, conv.ow, range(len(tile)), 2)))
        return loop.results
