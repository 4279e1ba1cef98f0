"""Data gradient of a convolution with few inputs: vectors run along taps and inputs, as inputs would leave lanes empty.

ALGORITHM
    dx[n, ih, iw, i] = sum over o, kh, kw of dy[n, ih - kh + p, iw - kw + p, o] * w[o, i, kh, kw]
SCHEDULE
    Every pixel of dy adds to kw*c neighbouring elements of a row of dx. They are a few vectors (5 taps of 6 inputs: 30 of 32
    lanes), and a tile is those of a whole row of dy, summed over kh and outputs in registers. Then the row is *folded*: each
    pixel's vectors, moved to where its elements lie, are added in registers. Rows of dx are shared among the threads.
    Weights are Packed as outputs (kw, i) of inputs o, ``[kh][o][kw][i]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from twofold.backends.cpu.kernels.axes import clip
from twofold.backends.cpu.kernels.shapes import Conv, gradient_axes
from twofold.backends.cpu.kernels.tile import Operands, accumulate, flatten, shaped, zeros
from twofold.backends.cpu.kernels.weights import Order, Packed
from twofold.backends.cpu.llvm import Function, Index, Value, const
from twofold.backends.cpu.machine import Machine
from twofold.backends.cpu.program import Kernel, KernelBuilder


@dataclass(frozen=True)
class Unfolded:
    """Weights of a convolution as those of one whose outputs are its (kw, input), and whose taps its kh."""

    base: Order
    conv: Conv

    def offset(self, f: Function, group: Index, o: Index, i: Index, tap: Index) -> Index:
        """Where the weight lies that leads from output ``i`` of the convolution to its (kw, input) ``o``."""
        kw, inner = f.div(o, self.conv.c), f.rem(o, self.conv.c)
        return self.base.offset(f, group, i, inner, f.add(f.mul(tap, self.conv.kw), kw))


def fits(machine: Machine, conv: Conv, ldy: int = 0) -> bool:
    """Whether the kernel takes a convolution whose input's pixels lie ``ldy`` elements apart, and leaves fewer lanes empty than
    vectors of inputs."""
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and (ldy or conv.c) == conv.c
    packed, narrow = packing(machine, conv), machine.narrowed(conv.c).lanes
    room = packed.block // machine.lanes * (conv.ow + 1) + 1 <= machine.registers
    return plain and room and packed.block < conv.kw * -(-conv.c // narrow) * narrow


def packing(machine: Machine, conv: Conv) -> Packed:
    """The packed order of the weights; fill it from ``Unfolded``."""
    outs = conv.kw * conv.c
    return Packed(1, outs, conv.o, conv.kh, 1, -(-outs // machine.lanes) * machine.lanes, machine.lanes)


def data_gradient(machine: Machine, conv: Conv, ldx: int = 0) -> Kernel:
    """Kernel (x = output's gradient, w, y = input's gradient)."""
    k = KernelBuilder(machine, "conv_fold_dx", ["x", "w", "y"])
    f, lanes, packed, [v] = k.f, machine.lanes, packing(machine, conv), gradient_axes(conv, 0)
    ldx, vectors = ldx or conv.o, packed.block // lanes
    tile = zeros(f, conv.ow, vectors)
    with f.loop(*f.share(conv.n * conv.h, f.arg("tid"), f.arg("n"))) as unit:
        image, row = f.divmod_chain(unit.index, [conv.n, conv.h])
        with f.loop(*clip(f, v, row), carry=flatten(tile)) as tap:
            line = f.add(f.mul(image, conv.oh), f.add(f.add(row, v.first), tap.index))
            x = f.gep(f.arg("x"), f.mul(line, conv.ow * ldx))
            w = f.gep(f.arg("w"), f.mul(f.sub(v.kernel, tap.index), conv.o * packed.block))
            ops = Operands(x, w, 1, ldx, packed.block, (lanes,) * vectors)
            tap.carry(flatten(accumulate(f, shaped(tap.carried, vectors), ops, conv.o, range(conv.ow))))
        sums, y = shaped(tap.results, vectors), f.gep(f.arg("y"), f.mul(unit.index, conv.w * conv.c))
        for at in range(0, conv.w * conv.c, lanes):
            f.vstore(_folded(f, conv, sums, at), f.gep(y, at), min(lanes, conv.w * conv.c - at))
    return k.finish(flops=conv.flops, note=f"direct, vectors of {conv.kw} taps by {conv.c} inputs")


def _folded(f: Function, conv: Conv, sums: list[list[Value]], at: int) -> Value:
    """The vector of a row of dx from element ``at`` on: the pixels' sums, moved to their places."""
    lanes, none = f.machine.lanes, const(f.vec(), 0.0)
    total: Value | None = None
    for pixel, own in enumerate(sums):
        start = at - (pixel - conv.pad[1][0]) * conv.c  # element of the pixel's sums that meets lane 0
        which = [start + lane if 0 <= start + lane < conv.kw * conv.c else -1 for lane in range(lanes)]
        used = sorted({e // lanes for e in which if e >= 0})
        if not used:
            continue
        first, second = own[used[0]], own[used[-1]] if len(used) > 1 else none
        moved = f.shuffle(first, second, [e - used[0] * lanes if e >= 0 else -1 for e in which])
        if -1 in which:
            moved = f.shuffle(moved, none, [lane if e >= 0 else lanes + lane for lane, e in enumerate(which)])
        total = moved if total is None else f.fadd(total, moved)
    return total or none
