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
    The first chunk of a part begins with zeros: its tiles are read from a few zeros instead of from the result.
    With few input channels (stems) a tile takes several neighbouring kw: together they are contiguous in the strip. If all of
    them leave most of the registers free, it takes several kh as well.
    For 1x1 kernels only the pixels that the stride meets are copied, and a chunk is one loop over them; without a
    stride, images and rows are forgotten.
    What is cut how is in ``wgrad_plan``, the copies are in ``wgrad_copies``, what is prefetched meanwhile in ``wgrad_ahead``.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from twofold.backends.cpu.kernels.direct import is_pointwise
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.kernels.tile import Fetch, Operands, Tile, accumulate, flatten, shaped
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.kernels.wgrad_ahead import Ahead
from twofold.backends.cpu.kernels.wgrad_plan import ROUND, Chunk, Slab, Unit, chunk_pixels, flattened
from twofold.backends.cpu.llvm import Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel
from twofold.base.dtypes import DType, bfloat16, float32


def weight_gradient(
    machine: Machine, conv: Conv, packed: Packed, ldx: int = 0, ldy: int = 0, dtype: DType = float32
) -> Kernel:
    """Kernel (x, dy, dw, [workspace], scratch): x and dy of ``dtype``, ``dw`` float32 in forward ``packed`` order (its
    padding is set to zero)."""
    pairs = dtype is bfloat16
    flat = flattened(conv, chunk_pixels(machine, packed.block, pairs), pairs) if is_pointwise(conv) else None
    return _Builder(machine, flat or conv, packed, ldx or conv.c, ldy or conv.o, flat is not None, pairs).kernel()


class _Builder(Ahead):
    """The walk over units and tiles."""

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

    def _sweep(self, slab: Slab) -> None:
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
                at = Chunk(f.mul(images, self.images), row)
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
                    self._unit(slab, Unit(unit.index, *span, rows, group, channel, dy, next_x, result, fresh))

    def _further(self) -> int:
        """Rows of x from what the chunk's first row meets to the first that it does not read."""
        conv = self.conv
        read = (self.rows - 1) * conv.stride[0] + (conv.kh - 1) * conv.dilation[0] + 1 - conv.pad[0][0]
        return read if conv.kh > 1 else self.rows * conv.stride[0]

    def _unit(self, slab: Slab, unit: Unit) -> None:
        """A chunk's products of one slab and one block of outputs."""
        f, kinds = self.f, self.packed.kinds()
        inner, block = f.divmod_chain(unit.index, [slab.groups, self.blocks])
        for first, count, outs in kinds:
            if len(kinds) == 1:
                self._block(slab, unit, inner, block, outs)
            else:
                with f.when(f.icmp("ult", f.index(f.sub(block, first)), count)):
                    self._block(slab, unit, inner, block, outs)

    def _block(self, slab: Slab, unit: Unit, inner: Index, block: Index, outs: int) -> None:
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
        unit: Unit,
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
