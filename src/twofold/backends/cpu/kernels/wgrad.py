"""Gradient of a convolution with respect to its weights.

ALGORITHM
    dw[o, i, kh, kw] = sum over n, oh, ow of x[n, oh*s + kh*d - p, ow*s + kw*d - p, i] * dy[n, oh, ow, o]
SCHEDULE
    A tile is MR inputs x NV vectors of outputs in registers (the forward tile with inputs as its pixels), reduced over
    the output positions. These go by in chunks: rows of one image, or several small images. The chunks are cut into
    ``parts`` that are summed apart and joined at the end in their order, and the inputs into ``slabs``. Units (part,
    slab, block of outputs) are shared among the threads. A thread copies, chunk by chunk, its slab of x (with the
    padding as zeros) into strips of MR channels, and then block by block dy into a strip of NV vectors, and adds the
    products of these two to the result. Nobody waits for anybody before the end, and every weight has one order of
    summation whatever the number of threads.
    Sizes: the strip of dy fills a quarter to half of L1, since all strips of x pass by it; the slab of x half of L2, since all
    blocks of dy pass by it. As many parts as make enough units to share, which the shape decides, not the threads.
    The first chunk of a part begins with zeros: its tiles are read from a few zeros instead of from the result.
    With few input channels (stems) a tile takes several neighbouring kw: together they are contiguous in the strip. If all of
    them leave most of the registers free, it takes several kh as well.
    For 1x1 kernels only the pixels that the stride meets are copied, and a chunk is one loop over them; without a
    stride, images and rows are forgotten.
    On the way tiles ask for what is copied next and for the next tile of the result, a few lines with every row, or with every
    round of a 1x1 kernel's loop. Where dy has few products (stems), a tile asks for a line of every pixel, as it goes.
    Images of bfloat16 are copied as pairs of pixels that neighbouring outputs meet, for dot products: of dy every pixel is in
    one pair, of x as well if the kernel is one column wide; else each column of x is in two, as the first and as the second.
    In a row of an odd number of outputs the last pair counts half.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from twofold.backends.cpu.kernels import strips
from twofold.backends.cpu.kernels.direct import is_pointwise
from twofold.backends.cpu.kernels.shapes import Conv, runs, split
from twofold.backends.cpu.kernels.tile import LINE, Operands, Tile, accumulate, flatten, most_pixels, shaped
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder
from twofold.base.dtypes import DType, bfloat16, float32

GROUP = 8  # pixels of a strip copied together
SHORTEST = 96  # pixels that a chunk has at least, if rows are to be forgotten
LONG = 128  # pixels, after which bringing in and storing a tile hardly counts
MOST = 16  # pixels of which a round asks for a line
ROUND = 4  # steps of a 1x1 kernel's loop, written out
UNITS = 32  # units wanted: enough to share them evenly among several threads
FEW = 400  # products of a vector of dy: waiting for it takes about as long (27 for 3x3 of 3 channels), or a twentieth (363)

Fetch = Callable[[Index], None]  # asks for lines, given the number of the round


@dataclass(frozen=True)
class _Slab:
    """A kind of slab, ``count`` of them: ``groups`` whole groups from group ``first`` on, or (``cut``) of each group
    ``channels`` channels from ``first`` on."""

    first: int
    count: int
    groups: int
    channels: int
    cut: bool


@dataclass(frozen=True)
class _Strips:
    """Strips of x of one width: ``inputs`` channels from ``first + k*inputs`` on, for k below ``count``; ``before``
    strips come before them in the slab."""

    first: int
    count: int
    inputs: int
    before: int


@dataclass(frozen=True)
class _Chunk:
    """The first image and output row of a chunk."""

    image: Index
    row: Index


@dataclass(frozen=True)
class _Unit:
    """What a thread does with a chunk: unit ``index`` of its own, [``low``, ``high``), in the slab from ``channel`` of
    ``group`` on. ``rows`` rows of each image; ``dy`` and ``next_x`` point to the chunk's dy and to the x after it;
    ``fresh`` tells that ``result`` has nothing yet."""

    index: Index
    low: Index
    high: Index
    rows: Index
    group: Index
    channel: Index
    dy: Value
    next_x: Value
    result: Value
    fresh: Value


@dataclass(frozen=True)
class _Source:
    """Where the pixels of a strip are read, and the second ones of its pairs; None where they are zeros."""

    first: Value | None = None
    second: Value | None = None

    def where(self, inside: tuple[bool, bool]) -> _Source:
        """With zeros for what does not lie inside the image."""
        return _Source(self.first if inside[0] else None, self.second if inside[1] else None)


def weight_gradient(
    machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0, dtype: DType = float32
) -> Kernel:
    """Kernel (x, dy, dw, [workspace], scratch): x and dy of ``dtype``, ``dw`` float32 in forward ``packed`` order (its
    padding is set to zero)."""
    pairs = dtype is bfloat16
    flat = _flattened(conv, _most_pixels(machine, packed.block, pairs), pairs) if is_pointwise(conv) else None
    return _Builder(machine, flat or conv, packed, ldx or conv.c, ldy or conv.o, flat is not None, pairs).kernel()


def _most_pixels(machine: Machine, width: int, pairs: bool) -> int:
    """Pixels of a chunk at most: their strip of dy takes a quarter of L1, up to half of it for ``LONG`` ones."""
    fill = machine.l1 // ((2 if pairs else 4) * width)
    return max(fill // 4, min(fill // 2, LONG))


def _flattened(conv: Conv, most: int, pairs: bool) -> Conv | None:
    """A pointwise convolution with its pixels as one-row images of a convenient size, if there is one."""
    pixels = conv.n * conv.h * conv.w
    rows = [size for size in range(1, min(pixels, most) + 1) if pixels % size == 0]
    row = max([size for size in rows if size % 2 == 0] or rows if pairs else rows)
    return replace(conv, n=pixels // row, h=1, w=row) if row >= min(pixels, SHORTEST) else None


def chunk(machine: Machine, conv: Conv, inputs: int, width: int, pairs: bool = False) -> tuple[int, int]:
    """(images, output rows) of a chunk, whose strips have so many channels: that of x takes as much as L1,
    from which dy pushes it, but it is read in order, and the result is read and written once a chunk."""
    vertical, horizontal = copied_strides(conv)
    size = 2 if pairs and conv.kw == 1 else 4  # bytes that a pixel takes in a strip
    pixels = min(_most_pixels(machine, width, pairs), machine.l1 // (size * vertical * horizontal * inputs))
    rows = split(conv.oh, max(1, min(conv.oh, pixels // conv.ow)))[0]
    images = 1
    if rows == conv.oh:
        images = max(i for i in range(1, conv.n + 1) if conv.n % i == 0 and (i == 1 or i * rows * conv.ow <= pixels))
    return images, rows


def copied_strides(conv: Conv) -> tuple[int, int]:
    """The strides within the copy of x: pixels between those that a 1-wide kernel meets are left out of it."""
    return (conv.stride[0] if conv.kh > 1 else 1, conv.stride[1] if conv.kw > 1 else 1)


class _Builder:
    def __init__(self, machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int, flat: bool, pairs: bool):
        self.machine, self.conv, self.packed, self.ldx, self.ldy, self.flat = machine, conv, packed, ldx, ldy, flat
        self.pairs, self.element = pairs, "i16" if pairs else "float"
        vectors = -(-min(packed.outs, packed.block) // machine.lanes)
        self.most, room = most_pixels(machine, vectors), machine.accumulators(vectors) // vectors
        fitting = conv.kw if conv.cg * conv.kw <= room else max(1, min(conv.kw, self.most // conv.cg))
        together = fitting if conv.dilation[1] == 1 else 1
        whole, rest = divmod(conv.kw, together)
        self.taps = [(0, whole, together)] + ([(whole * together, 1, rest)] if rest else [])
        tall = room // (conv.cg * conv.kw) if together == conv.kw else 1
        self.tall = max(k for k in range(1, max(1, min(conv.kh, tall)) + 1) if conv.kh % k == 0)  # kh of a tile
        self.few = not (flat or pairs) and conv.groups == 1 and conv.cg * conv.kh * conv.kw <= FEW
        self.images, self.rows = chunk(machine, conv, min(conv.cg, self.most), packed.block, pairs)
        self.strides = copied_strides(conv)
        self.in_rows = (self.rows - 1) * self.strides[0] + (conv.kh - 1) * conv.dilation[0] + 1
        self.in_columns = (conv.ow - 1) * self.strides[1] + (conv.kw - 1) * conv.dilation[1] + 1
        self.every = 2 if pairs and conv.kw == 1 else 1  # copied columns from one of a strip to the next
        self.in_columns = -(-self.in_columns // self.every)
        self.y_columns = -(-conv.ow // 2) if pairs else conv.ow
        self.x_plane = self.images * self.in_rows * self.in_columns  # pixels, or pairs, of a strip
        self.y_plane = self.images * self.rows * self.y_columns
        self.pixels = self.images * self.rows * conv.ow  # of dy, in a chunk
        self.point = (conv.kh, conv.kw) == (1, 1)
        self.rounds = max(1, self.y_plane // ROUND) if self.point else self.images * self.rows  # of a tile's loop
        self.bands = -(-conv.oh // self.rows)
        self.chunks = conv.n // self.images * self.bands
        self.blocks = packed.whole + (1 if packed.rest else 0)
        self.y_width = packed.whole * packed.block + packed.rest_width  # elements for a pixel of a group
        self.slabs = self._slabs()
        units = sum(s.count * (conv.groups * self.blocks if s.cut else 2) for s in self.slabs)
        self.parts = max(1, min(self.chunks, UNITS // units, machine.l3 // 4 // (4 * packed.size)))
        width = min(packed.block, -(-packed.outs // machine.lanes) * machine.lanes)
        self.zeros = max(self.most, (self.tall * together - 1) * packed.ins + min(conv.cg, self.most)) * width
        strip = max(width if s.cut else s.groups * self.y_width for s in self.slabs)
        self.x_at = self.zeros + -(-self.y_plane * strip // LINE) * LINE
        channels = max(s.groups * s.channels for s in self.slabs)
        self.scratch = 4 * -(-(self.x_at + channels * self.x_plane) // LINE) * LINE
        names = ["x", "dy", "dw", *(["workspace"] if self.parts > 1 else []), "scratch"]
        self.k = KernelBuilder(machine, "conv_dw", names)
        self.f: Function = self.k.f
        self.own = self.f.gep(self.f.arg("scratch"), self.f.mul(self.f.arg("tid"), self.scratch), "i8")

    def kernel(self) -> Kernel:
        f = self.f
        with f.loop(0, self.zeros, self.machine.lanes) as loop:
            f.vstore(const(f.vec(), 0.0), f.gep(self.own, loop.index))
        for slab in self.slabs:
            self._sweep(slab)
        if self.parts > 1:
            self.k.barrier()
            self._join()
        images = (
            f"{self.chunks} rows of {self.conv.ow} pixels" if self.flat else f"{self.images} images of {self.rows} rows"
        )
        note = f"direct weight gradient, {images} at a time, {self.parts} parts"
        workspace = 4 * (self.parts - 1) * self.packed.size
        return self.k.finish(flops=self.conv.flops, workspace=workspace, scratch=self.scratch, note=note)

    def _slabs(self) -> list[_Slab]:
        conv = self.conv
        size = self.machine.l2 // 2 // 4
        groups = 4 * size // (conv.cg * self.x_plane + self.y_width * self.y_plane)
        if conv.groups > 1 and groups:
            return [_Slab(*run, conv.cg, cut=False) for run in runs(split(conv.groups, groups))]
        most = max(self.most, size // self.x_plane)
        return [_Slab(first, count, 1, size, cut=True) for first, count, size in runs(split(conv.cg, most))]

    def _strips(self, slab: _Slab) -> list[_Strips]:
        found, before = [], 0
        for first, count, inputs in runs(split(slab.channels, self.most)):
            found.append(_Strips(first, count, inputs, before))
            before += count
        return found

    # ---- the walk -----------------------------------------------------------------------------------------------------
    def _sweep(self, slab: _Slab) -> None:
        """All units of one kind of slab."""
        f, conv = self.f, self.conv
        outer_groups = conv.groups if slab.cut else 1
        inner = slab.groups * self.blocks
        low, high = f.share(self.parts * outer_groups * slab.count * inner, f.arg("tid"), f.arg("n"))
        with f.loop(f.div(low, inner), f.div(f.add(high, inner - 1), inner)) as outer:
            part, group, number = f.divmod_chain(outer.index, [self.parts, outer_groups, slab.count])
            start = f.mul(outer.index, inner)
            span = f.imax(f.sub(low, start), 0), f.imin(f.sub(high, start), inner)
            group, channel = (
                (group, f.add(f.mul(number, slab.channels), slab.first))
                if slab.cut
                else (f.add(f.mul(number, slab.groups), slab.first), 0)
            )
            first, end = f.share(self.chunks, part, self.parts)
            result = f.arg("dw")
            if self.parts > 1:
                later = f.gep(f.arg("workspace"), f.mul(f.sub(part, 1), self.packed.size))
                result = f.select(f.icmp("eq", f.index(part), 0), result, later)
            with f.loop(first, end) as loop:
                images, band = f.divmod_chain(loop.index, [conv.n // self.images, self.bands])
                row = f.mul(band, self.rows)
                rows = f.imin(self.rows, f.sub(conv.oh, row)) if conv.oh % self.rows else self.rows
                at = _Chunk(f.mul(images, self.images), row)
                self._copy_x(slab, at, f.add(f.mul(group, conv.cg), channel))
                fresh = f.icmp("eq", loop.index, f.index(first))
                pixel = f.mul(f.add(f.mul(at.image, conv.oh), at.row), conv.ow)
                dy = f.gep(f.arg("dy"), f.mul(pixel, self.ldy), self.element)
                line = f.add(f.mul(at.image, conv.h), f.mul(at.row, conv.stride[0]))
                further = self.images * conv.h if self.rows == conv.oh else self._further()
                next_x = f.add(f.mul(f.mul(f.add(line, further), conv.w), self.ldx), channel)
                next_x = f.gep(f.arg("x"), next_x, self.element)
                if not slab.cut:
                    whole = f.gep(dy, f.mul(group, conv.og), self.element)
                    self._copy_groups(slab, whole, f.mul(rows, self.images))
                with f.loop(*span) as unit:
                    self._unit(slab, _Unit(unit.index, *span, rows, group, channel, dy, next_x, result, fresh))

    def _further(self) -> int:
        """Rows of x from what the chunk's first row meets to the first that it does not read."""
        conv = self.conv
        read = (self.rows - 1) * conv.stride[0] + (conv.kh - 1) * conv.dilation[0] + 1 - conv.pad[0][0]
        return read if conv.kh > 1 else self.rows * conv.stride[0]

    def _unit(self, slab: _Slab, unit: _Unit) -> None:
        """A chunk's products of one slab and one block of outputs."""
        f, kinds = self.f, self.packed.kinds()
        inner, block = f.divmod_chain(unit.index, [slab.groups, self.blocks])
        for first, count, outs in kinds:
            if len(kinds) == 1:
                self._block(slab, unit, inner, block, outs)
            else:
                with f.when(f.icmp("ult", f.index(f.sub(block, first)), count)):
                    self._block(slab, unit, inner, block, outs)

    def _block(self, slab: _Slab, unit: _Unit, inner: Index, block: Index, outs: int) -> None:
        f, conv, packed, lanes = self.f, self.conv, self.packed, self.machine.lanes
        group = f.add(unit.group, inner)
        width = -(-outs // lanes) * lanes
        chunk_dy = unit.dy
        unit = replace(unit, dy=f.gep(unit.dy, f.dot([(group, conv.og), (block, packed.block)]), self.element))
        dy = f.gep(self.own, f.add(self._strip(inner, block), self.zeros))
        if slab.cut:
            dy = f.gep(self.own, self.zeros)
            self._copy_dy(unit.dy, dy, f.mul(unit.rows, self.images), outs)
        panel = f.gep(unit.result, packed.panel(f, group, block))
        x = f.gep(self.own, f.add(f.mul(inner, slab.channels * self.x_plane), self.x_at))
        tall, before = conv.kh // self.tall, 0  # rows of tiles of a strip; tiles
        for kind in self._strips(slab):
            for first_tap, tap_groups, taps in self.taps:
                with f.loop(0, kind.count) as strip:
                    first = f.add(f.mul(strip.index, kind.inputs), kind.first)
                    if self.point and not self.flat and conv.groups == 1:
                        self._ahead(slab, unit, f.add(strip.index, kind.before))
                    with f.loop(0, conv.kh, self.tall) as kh, f.loop(0, tap_groups) as kw:
                        tap = f.add(f.mul(kw.index, taps), first_tap)
                        row = f.add(
                            f.mul(f.add(f.mul(kh.index, packed.kw), tap), packed.ins), f.add(first, unit.channel)
                        )
                        corner = f.dot([(kh.index, conv.dilation[0] * self.in_columns), (tap, conv.dilation[1])])
                        strip_at = f.add(f.mul(first, self.x_plane), f.mul(corner, kind.inputs))
                        target = f.gep(panel, f.mul(row, width))
                        fetches = [self._next_tile(target, kind.inputs * width, packed.ins * width)] if taps == 1 else []
                        place = [(strip.index, tall), (f.div(kh.index, self.tall), 1)]
                        number = f.add(f.add(f.mul(f.dot(place), tap_groups), kw.index), before)
                        if not slab.cut and not self.point:
                            fetches.append(self._next_groups(slab, unit, chunk_dy, number))
                        elif slab.cut and not self.few and (self.flat or not self.point):
                            fetches.append(self._next_pixels(slab, unit, number))
                        line = self._line_ahead(unit, kh.index, tap) if slab.cut and self.few else None
                        self._tile(unit, f.gep(x, strip_at), dy, target, kind.inputs, taps, width, fetches, line)
                before += kind.count * tall * tap_groups

    def _tile(
        self,
        unit: _Unit,
        x: Value,
        dy: Value,
        target: Value,
        inputs: int,
        taps: int,
        width: int,
        fetches: list[Fetch],
        line: Value | None,
    ) -> None:
        """Add the chunk's products to one tile of the result; on the way ``fetches`` are called in every round, and asks for
        the ``line`` of every pixel."""
        f, conv, lanes = self.f, self.conv, self.machine.lanes
        rows = list(itertools.product(range(self.tall), range(taps), range(inputs)))
        offsets = [
            [((a * self.packed.kw + b) * self.packed.ins + i) * width + j for j in range(0, width, lanes)] for a, b, i in rows
        ]
        before = f.select(unit.fresh, self.own, target)
        tile = [[f.vload(f.gep(before, offset)) for offset in line] for line in offsets]
        x_step = inputs * (self.strides[1] if not self.pairs else 2 * self.strides[1] // self.every)
        below = conv.dilation[0] * self.in_columns
        pixels_of = tuple((a * below + b) * inputs + i for a, b, i in rows)
        ops = Operands(x, dy, x_step, 1, width, (lanes,) * (width // lanes), pixels_of, pairs=self.pairs)
        if self.point and not self.odd:  # all pixels of the chunk follow each other
            pixels = f.mul(unit.rows, self.images * self.y_columns)
            each_round = _all(fetches)
            fetch = (lambda step: each_round(f.div(step, ROUND))) if isinstance(pixels, int) else None
            results = flatten(accumulate(f, tile, ops, pixels, range(len(tile)), ROUND, fetch))
        else:
            results = self._lines(tile, ops, unit.rows, inputs, fetches, line)
        for value, offset in zip(results, [offset for line in offsets for offset in line]):
            f.vstore(value, f.gep(target, offset))

    @property
    def odd(self) -> bool:
        """Whether the last pair of every row has one pixel."""
        return self.pairs and self.conv.ow % 2 == 1

    def _lines(
        self, tile: Tile, ops: Operands, rows: Index, inputs: int, fetches: list[Fetch], ahead: Value | None
    ) -> list[Value]:
        """The tile and the products of all rows of the chunk; ``ops`` are those of the first.

        One step a round: of two, LLVM would load what neighbouring pixels share once, and keep it in the stack."""
        f, vectors, everything = self.f, len(tile[0]), range(len(tile))
        steps = self.y_columns - (1 if self.odd else 0)
        with f.loop(0, f.mul(rows, self.images), carry=flatten(tile)) as loop:
            which = f.div(loop.index, rows) if self.images > 1 else 0
            line = f.sub(loop.index, f.mul(which, rows)) if self.images > 1 else loop.index
            x_line = f.add(f.mul(which, self.in_rows), f.mul(line, self.strides[0]))
            x = f.gep(ops.x, f.mul(x_line, self.in_columns * inputs))
            dy = f.gep(ops.w, f.mul(loop.index, self.y_columns * ops.w_step))
            start = ahead and f.gep(ahead, f.mul(loop.index, self.conv.ow * self.ldy))
            fetch = start and (lambda k: f.prefetch(f.gep(start, f.mul(k, self.ldy)), 2))
            _all(fetches)(loop.index)
            inner = accumulate(f, shaped(loop.carried, vectors), replace(ops, x=x, w=dy), steps, everything, fetch=fetch)
            if self.odd:
                x, dy = f.gep(x, steps * ops.x_step), f.gep(dy, steps * ops.w_step)
                inner = accumulate(f, inner, replace(ops, x=x, w=dy, single=True), 1, everything)
            loop.carry(flatten(inner))
        return loop.results

    # ---- prefetches ---------------------------------------------------------------------------------------------------
    def _line_ahead(self, unit: _Unit, kh: Index, kw: Index) -> Value:
        """The line of its first pixel that a tile asks for, of the dy that is copied next."""
        f, width = self.f, self.packed.block
        tile = f.add(f.mul(f.div(kh, self.tall), len(self.taps)), f.div(kw, self.taps[0][2]))
        return f.gep(self._next_dy(unit), f.mul(f.imin(tile, -(-width // LINE) - 1), LINE))

    def _next_tile(self, target: Value, size: int, tap: int) -> Fetch:
        """The next tile of the result, in even shares of a tile's rounds: of the next strip, or of the next ``tap``."""
        f, start = self.f, self.f.gep(target, size if self.point else tap)
        each = -(-size // LINE // self.rounds)

        def fetch(number: Index) -> None:
            first = f.mul(number, each)
            for k in range(each):
                f.prefetch(f.gep(start, f.mul(f.add(first, k), LINE)), 2)

        return fetch

    def _next_pixels(self, slab: _Slab, unit: _Unit, number: Index) -> Fetch:
        """What is copied next: the first tiles of a unit ask for dy of the next block, the others for x of the next chunk. A
        tile goes along the pixels, as many a round as suffice in all, and asks for as many lines of each as a block has: so a
        round has one place to compute. (Shares even to the line took longer to compute than they saved.)"""
        f, line, tiles = self.f, LINE * (2 if self.pairs else 1), self._tiles(slab)
        wide = -(-self.packed.block // line)  # lines of a pixel
        parts = -(-slab.channels // (wide * line))  # of a pixel of x
        usual = self.blocks if self.parts > 1 else -(-self.blocks // 2)  # units of a thread in a chunk

        def enough(many: int) -> bool:
            of_dy, of_x = self._runs(many)
            return (tiles - of_dy) * usual >= of_x * parts

        many = next(filter(enough, (1, 2, 3)), 4)  # pixels a round
        pixels, (of_dy, of_x) = many * self.rounds, self._runs(many)
        share = f.add(f.mul(f.sub(unit.index, unit.low), max(1, tiles - of_dy)), f.sub(number, of_dy))
        part, turn = f.divmod_chain(f.imin(share, of_x * parts), [parts, of_x])
        x = f.gep(unit.next_x, f.dot([(part, wide * line), (turn, pixels * self.ldx)]), self.element)
        dy = f.gep(self._next_dy(unit), f.mul(number, pixels * self.ldy), self.element)
        return self._either(f.icmp("slt", f.index(number), of_dy), dy, x, many, wide)

    def _next_groups(self, slab: _Slab, unit: _Unit, dy: Value, number: Index) -> Fetch:
        """What is copied next of whole groups: first ``dy`` of the next chunk, then its x, one line of many pixels for each
        tile of all units."""
        f, conv, line, tiles = self.f, self.conv, LINE * (2 if self.pairs else 1), self._tiles(slab)
        dy_parts, x_parts = (-(-slab.groups * channels // line) for channels in (conv.og, conv.cg))  # lines of a pixel

        def enough(many: int) -> bool:
            of_dy, of_x = self._runs(many)
            return of_dy * dy_parts + of_x * x_parts <= tiles * slab.groups * self.blocks

        many = next(filter(enough, range(1, MOST)), MOST)
        pixels, (of_dy, of_x) = many * self.rounds, self._runs(many)
        share = f.add(f.mul(f.sub(unit.index, unit.low), tiles), number)
        part, turn = f.divmod_chain(share, [dy_parts, of_dy])
        start = f.add(f.mul(unit.group, conv.og), f.mul(f.add(f.mul(turn, pixels), self.pixels), self.ldy))
        dy = f.gep(dy, f.add(start, f.mul(part, line)), self.element)
        part, turn = f.divmod_chain(f.imin(f.sub(share, of_dy * dy_parts), of_x * x_parts), [x_parts, of_x])
        place = f.dot([(unit.group, conv.cg), (part, line), (turn, pixels * self.ldx)])
        x = f.gep(unit.next_x, place, self.element)
        return self._either(f.icmp("slt", f.index(share), of_dy * dy_parts), dy, x, many, 1)

    def _tiles(self, slab: _Slab) -> int:
        """Tiles of a unit."""
        strips = sum(kind.count for kind in self._strips(slab))
        return strips * (self.conv.kh // self.tall) * sum(count for _, count, _ in self.taps)

    def _runs(self, many: int) -> tuple[int, int]:
        """Tiles after which all pixels of a chunk's dy had their turn, and all of its x, ``many`` in a round."""
        conv = self.conv
        lines = self.images * conv.h if self.rows == conv.oh else self.rows * conv.stride[0]
        return -(-self.pixels // (many * self.rounds)), -(-lines * conv.w // (many * self.rounds))

    def _either(self, first: Value, dy: Value, x: Value, many: int, wide: int) -> Fetch:
        """``wide`` lines of ``many`` pixels in every round, of dy or of x."""
        f, line = self.f, LINE * (2 if self.pairs else 1)
        start, pitch = f.select(first, dy, x), f.select(first, const("i64", self.ldy), const("i64", self.ldx))

        def fetch(number: Index) -> None:
            begin = f.mul(number, many)
            for k in range(many):
                place = f.gep(start, f.mul(f.add(begin, k), pitch), self.element)
                for at in range(0, wide * line, line):
                    f.prefetch(f.gep(place, at, self.element), 2)

        return fetch

    def _ahead(self, slab: _Slab, unit: _Unit, strip: Index) -> None:
        """Ask for a few of the lines that are copied next, before a tile: dy of the next block, x of the next chunk."""
        f, width, kind, line_size = self.f, self.packed.block, self.element, LINE * (2 if self.pairs else 1)
        tiles = sum(kind.count for kind in self._strips(slab))
        lines = -(-self.pixels // tiles)
        dy = f.gep(self._next_dy(unit), f.mul(strip, lines * self.ldy), kind)
        with f.loop(0, lines) as line:
            for at in range(0, width, line_size):
                f.prefetch(f.gep(dy, f.add(f.mul(line.index, self.ldy), at), kind), 2)
        each = -(-slab.channels // line_size)  # lines of a pixel of x
        shares = f.mul(f.sub(unit.high, unit.low), tiles)
        share = f.div(f.add(f.sub(shares, 1), self.pixels * each), shares)
        start = f.mul(f.add(f.mul(f.sub(unit.index, unit.low), tiles), strip), share)
        with f.loop(start, f.add(start, share)) as line:
            row, column, part = f.divmod_chain(line.index, [0, self.conv.ow, each])
            vertical, horizontal = self.conv.stride
            place = f.dot([(row, vertical * self.conv.w * self.ldx), (column, horizontal * self.ldx), (part, line_size)])
            f.prefetch(f.gep(unit.next_x, place, kind), 2)

    def _next_dy(self, unit: _Unit) -> Value:
        """The dy that is copied next: of the next block, or of the first one in the next chunk."""
        f, width = self.f, self.packed.block
        first_again = f.add(self.pixels * self.ldy, f.mul(f.sub(unit.low, unit.index), width))
        more = f.icmp("slt", f.add(unit.index, 1), f.index(unit.high))
        return f.gep(unit.dy, f.select(more, const("i64", width), f.index(first_again)), self.element)

    # ---- copies -------------------------------------------------------------------------------------------------------
    def _copy_x(self, slab: _Slab, at: _Chunk, channel: Index) -> None:
        """What the chunk reads of the slab from ``channel`` on, as strips, padding included."""
        f, conv = self.f, self.conv
        steps = [stride // copied for stride, copied in zip(conv.stride, self.strides)]
        columns = self._column_runs(steps[1])
        top = f.sub(f.mul(at.row, conv.stride[0]), conv.pad[0][0])
        with f.loop(0, self.images * self.in_rows) as loop:
            which, line = f.divmod_chain(loop.index, [self.images, self.in_rows])
            source_line = f.add(top, f.mul(line, steps[0]))
            start = f.mul(f.add(f.mul(f.add(at.image, which), conv.h), source_line), conv.w)
            first = f.add(f.mul(f.sub(start, conv.pad[1][0]), self.ldx), channel)
            source = _Source(*(f.gep(f.arg("x"), f.add(first, more), self.element) for more in (0, self._partner(steps[1]))))
            place = f.mul(loop.index, self.in_columns)

            def copy() -> list[Value]:
                for low, high, inside in columns:
                    self._columns(slab, source.where(inside), place, low, high, self.every * steps[1] * self.ldx)
                return []

            def clear() -> list[Value]:
                self._columns(slab, _Source(), place, 0, self.in_columns, 0)
                return []

            if conv.kh == 1 and conv.pad[0] == (0, 0) and conv.oh % self.rows == 0:
                copy()
            else:
                f.choose(f.icmp("ult", f.index(source_line), conv.h), copy, clear)

    def _partner(self, step: int) -> int:
        """How far from a pixel of x the second of its pair lies; columns are copied ``step`` apart."""
        return self.strides[1] * step * self.ldx

    def _column_runs(self, step: int) -> list[tuple[int, int, tuple[bool, bool]]]:
        """The columns of a strip as runs [low, high) and whether the first and the second of their pairs lie in the image."""
        conv, found, at = self.conv, [], 0
        column = lambda i, k: (i * self.every + k * self.strides[1]) * step - conv.pad[1][0]
        inside = [tuple(0 <= column(i, k) < conv.w for k in range(2)) for i in range(self.in_columns)]
        for both, same in itertools.groupby(inside if self.pairs else [(first, False) for first, _ in inside]):
            count = len(list(same))
            found.append((at, at + count, both))
            at += count
        return found

    def _columns(self, slab: _Slab, source: _Source, place: Index, low: int, high: int, step: int) -> None:
        """Columns [low, high) of all strips: ``step`` elements apart in ``source``."""
        f = self.f
        whole = low + (high - low) // GROUP * GROUP
        if low < whole:
            with f.loop(low, whole, GROUP) as column:
                self._pixels(slab, source, place, column.index, GROUP, step)
        if whole < high:
            self._pixels(slab, source, place, whole, high - whole, step)

    def _pixels(self, slab: _Slab, source: _Source, place: Index, column: Index, pixels: int, step: int) -> None:
        """``pixels`` neighbouring columns of all strips."""
        f = self.f
        for kind in self._strips(slab):
            with f.loop(0, slab.groups * kind.count) as strip:
                group, number = f.divmod_chain(strip.index, [slab.groups, kind.count])
                channel = f.dot([(group, slab.channels), (number, kind.inputs), (1, kind.first)])
                target = f.dot([(channel, self.x_plane), (f.add(place, column), kind.inputs), (1, self.x_at)])
                begin = f.dot([(column, step), (channel, 1)])
                first, second = (s and f.gep(s, begin, self.element) for s in (source.first, source.second))
                if self.pairs:
                    strips.copy_pairs(f, first, second, f.gep(self.own, target), pixels, kind.inputs, step)
                else:
                    strips.copy(f, first, f.gep(self.own, target), pixels, kind.inputs, step)

    def _each_pixel(self, rows: Index, body: Callable[[Index, Index, bool], None]) -> None:
        """``body(pixel of dy, its place in a strip, whether alone)`` for every pixel, or first one of a pair, of ``rows``."""
        f, step = self.f, 2 if self.pairs else 1
        if not self.odd:
            with f.loop(0, f.mul(rows, self.y_columns)) as pixel:
                body(f.mul(pixel.index, step), pixel.index, False)
            return
        with f.loop(0, rows) as row:
            start, place = f.mul(row.index, self.conv.ow), f.mul(row.index, self.y_columns)
            with f.loop(0, self.y_columns - 1) as column:
                body(f.add(start, f.mul(column.index, step)), f.add(place, column.index), False)
            body(f.add(start, self.conv.ow - 1), f.add(place, self.y_columns - 1), True)

    def _copy_outs(self, source: Value, target: Value, outs: int, alone: bool) -> None:
        """A block of outputs of one pixel of dy (or of it and the next, as pairs), zeros beyond the last output."""
        f, lanes = self.f, self.machine.lanes
        for lane in range(0, outs, lanes):
            count, place = min(lanes, outs - lane), f.gep(source, lane, self.element)
            value = f.vload(place, count, self.element)
            if self.pairs:
                after = f.gep(place, self.ldy, self.element)
                value = f.paired(value, const(value.type, 0) if alone else f.vload(after, count, self.element))
            f.vstore(value, f.gep(target, lane))

    def _copy_dy(self, source: Value, strip: Value, rows: Index, outs: int) -> None:
        """A block of outputs of the chunk's pixels as a strip."""
        f, width = self.f, -(-outs // self.machine.lanes) * self.machine.lanes

        def copy(pixel: Index, place: Index, alone: bool) -> None:
            begin = f.gep(source, f.mul(pixel, self.ldy), self.element)
            self._copy_outs(begin, f.gep(strip, f.mul(place, width)), outs, alone)

        self._each_pixel(rows, copy)

    def _copy_groups(self, slab: _Slab, source: Value, rows: Index) -> None:
        """All outputs of a slab of whole groups, pixel by pixel: several groups share a line."""
        f, packed, lanes = self.f, self.packed, self.machine.lanes

        def copy(pixel: Index, place: Index, alone: bool) -> None:
            with f.loop(0, slab.groups) as group:
                begin = f.gep(source, f.dot([(pixel, self.ldy), (group.index, self.conv.og)]), self.element)
                for first, count, outs in packed.kinds():
                    width = -(-outs // lanes) * lanes
                    with f.loop(first, first + count) as block:
                        strip = f.add(self._strip(group.index, block.index), f.mul(place, width))
                        target = f.gep(self.own, f.add(strip, self.zeros))
                        at = f.gep(begin, f.mul(block.index, packed.block), self.element)
                        self._copy_outs(at, target, outs, alone)

        self._each_pixel(rows, copy)

    def _strip(self, group: Index, block: Index) -> Index:
        """Where the strip of dy of a block of outputs lies, in a slab of whole groups."""
        f = self.f
        return f.mul(f.add(f.mul(group, self.y_width), f.mul(block, self.packed.block)), self.y_plane)

    def _join(self) -> None:
        """Add the later parts to the first, in their order."""
        f, size, lanes = self.f, self.packed.size, self.machine.lanes
        with f.loop(*f.share(size // lanes, f.arg("tid"), f.arg("n"))) as loop:
            at = f.mul(loop.index, lanes)
            total = f.vload(f.gep(f.arg("dw"), at))
            for part in range(self.parts - 1):
                total = f.fadd(total, f.vload(f.gep(f.arg("workspace"), f.add(at, part * size))))
            f.vstore(total, f.gep(f.arg("dw"), at))


def _all(fetches: list[Fetch]) -> Fetch:
    def fetch(number: Index) -> None:
        for one in fetches:
            one(number)

    return fetch
