"""Direct convolution: forward, and the gradient with respect to the input (any stride), with groups and tails.

ALGORITHM
    y[n, oh, ow, o] = sum over kh, kw, i of x[n, oh*s + kh*d - p, ow*s + kw*d - p, i] * w[o, i, kh, kw]
SCHEDULE
    units (group, block of outputs, image, block of rows) are shared among the threads; a unit walks its rows, a row its
    tiles of MR pixels x NV vectors, a tile reduces over (kh, kw, i) in registers. Padding is never copied: kh is
    clipped at run time, and tiles at the left and right edge are variants without the products that fall outside.
    Groups (ResNeXt) are the exception: the few channels of one group lie a whole pixel apart, in few cache sets, so a
    unit first copies what it reads, padding included, into a *slab* of its own (``slab.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import slab
from twofold.backends.cpu.kernels.axes import clip, segments
from twofold.backends.cpu.kernels.shapes import Axis, Conv, Pass, forward_axes, gradient_axes
from twofold.backends.cpu.kernels.tile import Operands, accumulate, best_shape, flatten, shaped, zeros
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

UNROLL = 2  # steps of the innermost loop written out


def forward(
    machine: Machine, conv: Conv, packed: Packed, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0
) -> Kernel:
    """Kernel (x, w, y, ...epilogue): the forward convolution with weights in ``packed`` order."""
    v, h = forward_axes(conv)
    one = Pass(conv.n, v, h, ldx or conv.c, ldy or conv.o)
    passes = _flattened(machine, one, packed) if is_pointwise(conv) else [one]
    return _build(machine, "conv", passes, packed, epilogue, conv.flops)


def data_gradient(
    machine: Machine, conv: Conv, packed: Packed, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0
) -> Kernel:
    """Kernel (x = output's gradient, w, y = input's gradient, ...epilogue); ``packed`` must be backward packing."""
    ldx, ldy = ldx or conv.o, ldy or conv.c
    passes = [Pass(conv.n, v, h, ldx, ldy) for v in gradient_axes(conv, 0) for h in gradient_axes(conv, 1)]
    if is_pointwise(conv):
        passes = _flattened(machine, passes[0], packed)
    return _build(machine, "conv_dx", passes, packed, epilogue, conv.flops)


def packing(machine: Machine, conv: Conv, forward: bool = True) -> Packed:
    """The packed order with the best tile for this convolution (``forward=False``: for its data gradient)."""
    outs, ins = (conv.og, conv.cg) if forward else (conv.cg, conv.og)
    width = conv.ow if forward else -(-conv.w // conv.stride[1])
    if is_pointwise(conv):
        width = conv.n * conv.h * conv.w
    shape = best_shape(machine, min(width, 96), outs)
    return Packed(conv.groups, outs, ins, conv.kh, conv.kw, shape.vectors * machine.lanes, machine.lanes, forward)


def is_pointwise(conv: Conv) -> bool:
    """A 1x1 convolution without stride or padding: a matrix product over all pixels."""
    return (conv.kh, conv.kw, conv.stride, conv.pad) == (1, 1, (1, 1), ((0, 0), (0, 0)))


def _flattened(machine: Machine, one: Pass, packed: Packed) -> list[Pass]:
    """A pointwise pass with its pixels in rows of a convenient length, and the rest as a short row."""
    pixels = one.n * one.v.inputs * one.h.inputs
    vectors = packed.block // packed.lanes
    row = min(pixels, 8 * (machine.accumulators(vectors) // vectors))
    passes = []
    for first, rows, length in ((0, pixels // row, row), (pixels - pixels % row, 1, pixels % row)):
        if length:
            v, h = Axis(rows, rows, rows), Axis(length, length, length)
            passes.append(Pass(1, v, h, one.ldx, one.ldy, first * one.ldx, first))
    return passes


def row_block(machine: Machine, one: Pass, packed: Packed) -> int:
    """Rows in a unit: more reuse of weights with more, but their input in a quarter of L2, and enough units for many
    threads."""
    others = packed.groups * (packed.whole + (1 if packed.rest else 0)) * one.n
    for rows in (8, 4, 2):
        enough = one.v.outputs >= rows and others * -(-one.v.outputs // rows) >= 64
        if enough and _near(machine, one, packed, rows):
            return rows
    return 1


def _near(machine: Machine, one: Pass, packed: Packed, rows: int) -> bool:
    """Whether the input of ``rows`` rows is small: a quarter of L2, or three quarters of L1 as a slab."""
    if slab.suits(one, packed):
        return slab.Slab(one, packed.ins, rows).bytes <= machine.l1 * 3 // 4
    return rows * _input_bytes(one, 1) <= machine.l2 // 4


def _slab(machine: Machine, one: Pass, packed: Packed) -> slab.Slab | None:
    """The slab that a unit of a pass goes through, if it does."""
    return slab.Slab(one, packed.ins, row_block(machine, one, packed)) if slab.suits(one, packed) else None


def _input_bytes(one: Pass, rows: int) -> int:
    """Bytes of input that ``rows`` rows of the output read, each pixel counted once."""
    lines = min(one.v.inputs, rows * min(one.v.step, one.v.taps))
    return 4 * one.ldx * lines * min(one.h.inputs, one.h.outputs * min(one.h.step, one.h.taps))


def _weights_outside(machine: Machine, one: Pass, packed: Packed, rows: int) -> bool:
    """Which loop is outside: blocks of weights (all images pass by each) or rows (all weights pass by each).

    The one that moves fewer bytes from beyond L2. Weights that fit half of L2 stay there.
    """
    weights = 4 * packed.group_size
    blocks = packed.whole + (1 if packed.rest else 0)
    by_rows = weights if weights <= machine.l2 // 2 else weights * one.n * -(-one.v.outputs // rows)
    return blocks * one.n * _input_bytes(one, one.v.outputs) < by_rows


def parts(machine: Machine, conv: Conv, packed: Packed) -> int:
    """Parts that an epilogue's Statistics of the forward kernel writes."""
    v, h = forward_axes(conv)
    one = Pass(conv.n, v, h, conv.c, conv.o)
    passes = _flattened(machine, one, packed) if is_pointwise(conv) else [one]
    return sum(p.n * -(-p.v.outputs // row_block(machine, p, packed)) for p in passes)


def _build(
    machine: Machine, name: str, passes: Sequence[Pass], packed: Packed, epilogue: ep.Epilogue, flops: int
) -> Kernel:
    slabs = [_slab(machine, one, packed) for one in passes]
    scratch = -(-max((s.bytes for s in slabs if s), default=0) // 64) * 64
    k = KernelBuilder(machine, name, ["x", "w", "y", *ep.params_of(epilogue), *(["scratch"] if scratch else [])])
    part = 0
    for one in passes:
        if one.v.outputs and one.h.outputs:
            rows = row_block(machine, one, packed)
            if one.v.taps and one.h.taps:
                sweep = _Sweep(k.f, machine, one, packed, epilogue, part, scratch)
                for kind in packed.kinds():
                    sweep.emit(*kind)
            else:
                _untouched(k.f, one, packed.groups * packed.outs, rows, epilogue, part)
            part += one.n * -(-one.v.outputs // rows)
    note = f"direct, block of {packed.block} outputs" + (", slabs" if scratch else "")
    return k.finish(flops=flops, scratch=scratch, note=note)


def _untouched(f: Function, one: Pass, channels: int, rows: int, epilogue: ep.Epilogue, first_part: int) -> None:
    """A pass that no product reaches (the gradient between the pixels a stride meets): zeros and the epilogue, pixel by
    pixel with all channels, so that memory is written as it lies."""
    lanes = f.machine.lanes
    whole = channels - channels % lanes
    kinds = [(0, whole, lanes)] if whole else []
    kinds += [(whole, channels, channels - whole)] if whole < channels else []
    blocks = -(-one.v.outputs // rows)
    with f.loop(*f.share(one.n * blocks, f.arg("tid"), f.arg("n"))) as unit:
        image, block = f.divmod_chain(unit.index, [one.n, blocks])
        part = f.add(first_part, unit.index)
        for step in epilogue:
            for start, stop, count in kinds:
                with f.loop(start, stop, lanes) as channel:
                    step.begin(f, part, channel.index, count)
        top = f.mul(block, rows)
        with f.loop(top, f.imin(f.add(top, rows), one.v.outputs)) as row, f.loop(0, one.h.outputs) as column:
            line = f.add(f.mul(image, one.v.extent), f.add(one.v.out_first, f.mul(row.index, one.v.out_step)))
            across = f.add(one.h.out_first, f.mul(column.index, one.h.out_step))
            pixel = f.add(f.add(one.pixel_first, f.mul(line, one.h.extent)), across)
            for low, high, count in kinds:
                with f.loop(low, high, lanes) as channel:
                    site = ep.Site(pixel, channel.index, count)
                    [value] = ep.finish_column(f, epilogue, [const(f.vec(), 0.0)], [site], part)
                    f.vstore(value, f.gep(f.arg("y"), f.add(f.mul(pixel, one.ldy), channel.index)), count)


class _Sweep:
    """Emits one pass; see the module's schedule."""

    def __init__(
        self, f: Function, machine: Machine, one: Pass, packed: Packed, epilogue: ep.Epilogue, part: int, scratch: int
    ):
        self.f, self.machine, self.one, self.packed, self.epilogue = f, machine, one, packed, epilogue
        self.rows = row_block(machine, one, packed)
        self.first_part, self.scratch = part, scratch
        self.slab = _slab(machine, one, packed)
        self.read = self.slab.read if self.slab else one  # where and how a tile reads
        self.weights_outside = _weights_outside(machine, one, packed, self.rows)

    def emit(self, first: int, count: int, outs: int) -> None:
        """All units of one kind of block: ``count`` blocks of ``outs`` outputs from block ``first`` on."""
        f, one, packed = self.f, self.one, self.packed
        lanes = self.machine.lanes
        self.counts = [min(lanes, outs - at) for at in range(0, outs, lanes)]
        self.width = len(self.counts) * lanes
        most = self.machine.accumulators(len(self.counts)) // len(self.counts)
        self.segments = segments(self.read.h, most)
        blocks_of_rows = -(-one.v.outputs // self.rows)
        low, high = f.share(packed.groups * count * one.n * blocks_of_rows, f.arg("tid"), f.arg("n"))
        with f.loop(low, high) as unit:
            if self.slab:  # neighbouring groups share cache lines
                image, rows, group, block = f.divmod_chain(unit.index, [one.n, blocks_of_rows, packed.groups, count])
            elif self.weights_outside:
                group, block, image, rows = f.divmod_chain(unit.index, [packed.groups, count, one.n, blocks_of_rows])
            else:
                group, image, rows, block = f.divmod_chain(unit.index, [packed.groups, one.n, blocks_of_rows, count])
            self._unit(group, f.add(block, first), image, rows, blocks_of_rows)

    top: Index  # the output row that lies first in what ``x`` points to

    def _unit(self, group: Index, block: Index, image: Index, rows: Index, blocks_of_rows: int) -> None:
        f, one, packed = self.f, self.one, self.packed
        size = one.v.inputs * one.h.inputs * one.ldx
        self.x = f.gep(f.arg("x"), f.add(one.x_first, f.dot([(image, size), (group, packed.ins)])))
        start, self.top = f.mul(rows, self.rows), 0
        if self.slab:
            target = f.gep(f.arg("scratch"), f.mul(f.arg("tid"), self.scratch), "i8")
            self.slab.copy(f, self.x, target, start)
            self.x, self.top = target, start
        self.w = f.gep(f.arg("w"), packed.panel(f, group, block))
        self.channel = f.dot([(group, packed.outs), (block, packed.block)])
        self.part = f.add(self.first_part, f.add(f.mul(image, blocks_of_rows), rows))
        for j, count in enumerate(self.counts):
            for step in self.epilogue:
                step.begin(f, self.part, f.add(self.channel, j * self.machine.lanes), count)
        stop = f.imin(f.add(start, self.rows), one.v.outputs) if one.v.outputs % self.rows else f.add(start, self.rows)
        with f.loop(start, stop) as row:
            self._row(image, row.index)

    def _row(self, image: Index, row: Value) -> None:
        f, one = self.f, self.one
        self.row = row
        self.taps = (0, one.v.taps) if self.slab else clip(f, one.v, row)
        line = f.add(f.mul(image, one.v.extent), f.add(one.v.out_first, f.mul(row, one.v.out_step)))
        self.pixel = f.add(one.pixel_first, f.add(f.mul(line, one.h.extent), one.h.out_first))
        for start, size, count in self.segments:
            if count == 1:
                self._tile(start, size, start)
            else:
                with f.loop(0, count) as tile:
                    self._tile(f.add(start, f.mul(tile.index, size)), size, start)

    def _tile(self, at: Index, size: int, example: int) -> None:
        """``size`` pixels from output ``at`` on; ``example`` is a fixed position with the same taps inside."""
        f, one, vectors = self.f, self.read, len(self.counts)
        tile = zeros(f, size, vectors)
        column = f.mul(f.add(f.mul(at, one.h.step), one.h.first), one.ldx)
        low, high = self.taps
        if (low, high) == (0, 1):
            tile = self._tap_row(tile, 0, column, size, example)
        else:
            with f.loop(low, high, carry=flatten(tile)) as tap:
                inner = shaped(tap.carried, vectors)
                tap.carry(flatten(self._tap_row(inner, tap.index, column, size, example)))
            tile = shaped(tap.results, vectors)
        self._store(tile, at, size)

    def _tap_row(self, tile, tap: Index, column: Index, size: int, example: int):
        """Add the products of one vertical tap."""
        f, one, ins = self.f, self.read, self.packed.ins
        row = f.sub(self.row, self.top)
        line = f.add(f.add(f.mul(row, one.v.step), one.v.first), f.mul(tap, one.v.spacing))
        x = f.gep(self.x, f.add(f.mul(line, one.h.inputs * one.ldx), column))
        kernel_row = f.add(one.v.kernel, f.mul(tap, one.v.kernel_step))
        w = f.gep(self.w, f.mul(kernel_row, self.packed.kw * ins * self.width))
        counts = (self.machine.lanes,) * len(self.counts)
        ops = Operands(x, w, 1, one.h.step * one.ldx, self.width, counts)
        everywhere = [p for p in range(size) if all(one.h.valid(example + p, t) for t in range(one.h.taps))]
        joined = one.h.spacing == one.h.kernel_step == 1 and one.h.kernel == 0 and ins == one.ldx
        if joined and len(everywhere) == size:  # (kw, i) is contiguous in x and in w: one loop
            if one.h.taps == 1 and one.h.step == 1:  # 1x1: the next tile's pixels, a piece with every step
                ops = replace(ops, next_tile=(size * ins, size))
            return accumulate(f, tile, ops, one.h.taps * ins, range(size), UNROLL)
        for t in range(one.h.taps):
            pixels = [p for p in range(size) if one.h.valid(example + p, t)]
            kernel = one.h.kernel + t * one.h.kernel_step
            if pixels:
                moved = replace(ops, x=f.gep(x, t * one.h.spacing * one.ldx), w=f.gep(w, kernel * ins * self.width))
                tile = accumulate(f, tile, moved, ins, pixels, UNROLL)
        return tile

    def _store(self, tile, at: Index, size: int) -> None:
        f, one = self.f, self.one
        first = f.add(self.pixel, f.mul(at, one.h.out_step))
        places = [f.add(first, p * one.h.out_step) for p in range(size)]
        base = f.gep(f.arg("y"), f.add(f.mul(first, one.ldy), self.channel))
        for j, count in enumerate(self.counts):
            channel = f.add(self.channel, j * self.machine.lanes)
            sites = [ep.Site(pixel, channel, count) for pixel in places]
            values = ep.finish_column(f, self.epilogue, [row[j] for row in tile], sites, self.part)
            for p, value in enumerate(values):
                f.vstore(value, f.gep(base, p * one.h.out_step * one.ldy + j * self.machine.lanes), count)
