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

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import partition
from twofold.backends.cpu.kernels.pointwise import Pointwise, flattened, is_pointwise, scratch_bytes, suits
from twofold.backends.cpu.kernels.shapes import Axis, Conv, Pass, forward_axes, gradient_axes, runs, split
from twofold.backends.cpu.kernels.sweep import Sweep, row_block, slab_of
from twofold.backends.cpu.kernels.tile import best_shape
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.llvm import Function, Index, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder

TOGETHER = 4  # pixels that no product reaches whose vectors are written together


def forward(
    machine: Machine, conv: Conv, packed: Packed, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0
) -> Kernel:
    """Kernel (x, w, y, ...epilogue): the forward convolution with weights in ``packed`` order."""
    return _build(machine, "conv", _forward_passes(machine, conv, packed, ldx, ldy), packed, epilogue, conv.flops)


def data_gradient(
    machine: Machine, conv: Conv, packed: Packed, epilogue: ep.Epilogue = (), ldx: int = 0, ldy: int = 0
) -> Kernel:
    """Kernel (x = output's gradient, w, y = input's gradient, ...epilogue); ``packed`` must be backward packing."""
    return _build(machine, "conv_dx", _backward_passes(machine, conv, packed, ldx, ldy), packed, epilogue, conv.flops)


def packing(machine: Machine, conv: Conv, forward: bool = True, pairs: bool = False) -> Packed:
    """The packed order with the best tile for this convolution (``forward=False``: for its data gradient; ``pairs``: its
    inputs, or for the gradient its outputs, are pairs)."""
    outs, ins = (conv.og, conv.cg) if forward else (conv.cg, conv.og)
    width = conv.ow if forward else -(-conv.w // conv.stride[1])
    pitch = 4 * (conv.c * conv.stride[1] if forward else conv.o)
    if is_pointwise(conv):
        width = conv.n * conv.h * conv.w
    shape = best_shape(machine, min(width, 96), outs, pitch)
    return Packed(conv.groups, outs, ins, conv.kh, conv.kw, shape.vectors * machine.lanes, machine.lanes, forward, pairs)


def parts(machine: Machine, conv: Conv, packed: Packed, ldx: int = 0) -> int:
    """Parts that an epilogue's sums are gathered in, by the forward kernel or the data gradient, whichever reads ``packed``."""
    passes = (_forward_passes if packed.forward else _backward_passes)(machine, conv, packed, ldx)
    return sum(p.n * -(-p.v.outputs // row_block(machine, p, packed)) for p in passes)


def _forward_passes(machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int = 0) -> Sequence[Pass]:
    v, h = forward_axes(conv)
    one = Pass(conv.n, v, h, ldx or conv.c, ldy or conv.o)
    return flattened(machine, one, packed) if is_pointwise(conv) else [one]


def _backward_passes(machine: Machine, conv: Conv, packed: Packed, ldx: int, ldy: int = 0) -> Sequence[Pass]:
    ldx, ldy = ldx or conv.o, ldy or conv.c
    across = gradient_axes(conv, 1)
    whole = [Axis(conv.ow, conv.w, conv.w, taps=0)]  # a row that no product reaches
    passes = [Pass(conv.n, v, h, ldx, ldy) for v in gradient_axes(conv, 0) for h in (across if v.taps else whole)]
    return flattened(machine, passes[0], packed) if is_pointwise(conv) else passes


def _build(
    machine: Machine, name: str, passes: Sequence[Pass], packed: Packed, epilogue: ep.Epilogue, flops: int
) -> Kernel:
    slabs = [slab_of(machine, one, packed) for one in passes]
    needed = [s.bytes if s else scratch_bytes(machine, one, packed) for one, s in zip(passes, slabs) if s or suits(one)]
    scratch = -(-max(needed, default=0) // 64) * 64
    k = KernelBuilder(machine, name, ["x", "w", "y", *ep.params_of(epilogue), *(["scratch"] if scratch else [])])
    part, sweeps = 0, []
    for one in passes:
        if one.v.outputs and one.h.outputs:
            rows = row_block(machine, one, packed)
            if one.v.taps and one.h.taps:
                kind_of = Pointwise if suits(one) else Sweep
                sweep = kind_of(k.f, machine, one, packed, epilogue, part, scratch)
                sweeps += [(sweep, kind) for kind in packed.kinds()]
            else:
                _untouched(k.f, one, packed.groups * packed.outs, rows, epilogue, part)
            part += one.n * -(-one.v.outputs // rows)
    loops = [sweep.units(count, outs) for sweep, (_, count, outs) in sweeps]
    for (sweep, kind), own in zip(sweeps, partition.parts(k.f, loops)):
        sweep.emit(*kind, own)
    note = f"direct, block of {packed.block} outputs" + (", slabs" if any(slabs) else "")
    return k.finish(flops=flops, scratch=scratch, note=note)


def _untouched(f: Function, one: Pass, channels: int, rows: int, epilogue: ep.Epilogue, first_part: int) -> None:
    """A pass that no product reaches (the gradient between the pixels a stride meets): zeros and the epilogue, a few pixels
    with all channels at a time, so that memory is written as it lies."""
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
        with f.loop(top, f.imin(f.add(top, rows), one.v.outputs)) as row:
            line = f.add(f.mul(image, one.v.extent), f.add(one.v.out_first, f.mul(row.index, one.v.out_step)))
            left = f.add(f.add(one.pixel_first, f.mul(line, one.h.extent)), one.h.out_first)
            for first, count, size in runs(split(one.h.outputs, TOGETHER)):
                with f.loop(first, first + count * size, size) as column:
                    pixel = f.add(left, f.mul(column.index, one.h.out_step))
                    pixels = [f.add(pixel, p * one.h.out_step) for p in range(size)]
                    for low, high, lanes_used in kinds:
                        with f.loop(low, high, lanes) as channel:
                            _zeros(f, one, pixels, channel.index, lanes_used, epilogue, part)


def _zeros(
    f: Function, one: Pass, pixels: Sequence[Index], channel: Index, count: int, epilogue: ep.Epilogue, part: Index
) -> None:
    """What the epilogue makes of zeros, at a vector of channels of some pixels; the same of the next ones is fetched."""
    for pixel in pixels:
        for stream in ep.streams(epilogue, one.ldy):
            stream.fetch(f, f.add(pixel, len(pixels) * one.h.out_step), channel)
    sites = [ep.Site(pixel, channel, count) for pixel in pixels]
    values = ep.finish_column(f, epilogue, [const(f.vec(), 0.0)] * len(pixels), sites, part)
    for site, value in zip(sites, values):
        place = f.add(f.mul(site.pixel, one.ldy), channel)
        f.vstore(value, f.gep(f.arg("y"), place, ep.element(epilogue)), count)
