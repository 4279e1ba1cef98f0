"""Shapes of convolutions, and the one-dimensional view of them that the generators work with.

Along one axis a convolution reads, for output ``o`` and tap ``t``, input ``o*step + first + t*spacing`` and kernel
position ``kernel + t*kernel_step``. The forward pass is one such axis; the gradient with respect to the input of a
strided convolution is ``stride`` of them, one for each phase of the input positions. So one generator serves both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twofold.base.errors import ShapeError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution: ``n`` images of (h, w, c) -> (oh, ow, o); ``pad`` is ((top, bottom), (left, right))."""

    n: int
    h: int
    w: int
    c: int
    o: int
    kh: int
    kw: int
    stride: Pair = (1, 1)
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self):
        if self.c % self.groups or self.o % self.groups:
            raise ShapeError(f"conv: {self.c} -> {self.o} channels do not divide into {self.groups} groups")
        if self.oh < 1 or self.ow < 1:
            raise ShapeError(f"conv: a {self.kh}x{self.kw} kernel does not fit images of {self.h}x{self.w}: {self}")

    def _out(self, axis: int) -> int:
        size, kernel = (self.h, self.kh) if axis == 0 else (self.w, self.kw)
        reach = (kernel - 1) * self.dilation[axis] + 1
        return (size + sum(self.pad[axis]) - reach) // self.stride[axis] + 1

    @property
    def oh(self) -> int:
        return self._out(0)

    @property
    def ow(self) -> int:
        return self._out(1)

    @property
    def cg(self) -> int:
        """Input channels of one group."""
        return self.c // self.groups

    @property
    def og(self) -> int:
        """Output channels of one group."""
        return self.o // self.groups

    @property
    def flops(self) -> int:
        """Of the direct algorithm, a multiply-add counted as two; the same for both gradients."""
        return 2 * self.n * self.oh * self.ow * self.o * self.cg * self.kh * self.kw


@dataclass(frozen=True)
class Axis:
    """One axis of one pass; see the module's text. Output ``o`` is written at ``out_first + o*out_step`` of
    ``extent``.
    """

    inputs: int
    outputs: int
    extent: int
    step: int = 1
    first: int = 0
    spacing: int = 1
    taps: int = 1
    kernel: int = 0
    kernel_step: int = 1
    out_first: int = 0
    out_step: int = 1

    def valid(self, output: int, tap: int) -> bool:
        return 0 <= output * self.step + self.first + tap * self.spacing < self.inputs

    @property
    def inside(self) -> bool:
        """No tap of any output falls on padding."""
        ends = (self.valid(o, t) for o in (0, self.outputs - 1) for t in (0, self.taps - 1))
        return self.taps > 0 and all(ends)


@dataclass(frozen=True)
class Pass:
    """One sweep: every output position of (v, h) once. Sizes in elements; ``x_first`` and ``pixel_first`` are
    offsets.
    """

    n: int
    v: Axis
    h: Axis
    ldx: int
    ldy: int
    x_first: int = 0
    pixel_first: int = 0


@dataclass(frozen=True)
class Matmul:
    """``batch`` products of (m, k) and (k, n); with a transposition flag the operand is stored (k, m) or (n, k).

    ``a_batch`` and ``b_batch`` say whether the operand has a batch of its own or is shared by all products.
    """

    m: int
    k: int
    n: int
    batch: int = 1
    transpose_a: bool = False
    transpose_b: bool = False
    a_batch: bool = True
    b_batch: bool = True

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


def halved(conv: Conv, forward: bool = True) -> Conv:
    """``conv`` as it sums over pairs of input channels (``forward=False``: of output channels, as the data gradient does);
    a channel without a partner counts as a pair."""
    if forward:
        return replace(conv, c=conv.groups * -(-conv.cg // 2))
    return replace(conv, o=conv.groups * -(-conv.og // 2))


def forward_axes(conv: Conv) -> tuple[Axis, Axis]:
    """The (vertical, horizontal) axes of the forward pass."""
    h = Axis(conv.h, conv.oh, conv.oh, conv.stride[0], -conv.pad[0][0], conv.dilation[0], conv.kh)
    w = Axis(conv.w, conv.ow, conv.ow, conv.stride[1], -conv.pad[1][0], conv.dilation[1], conv.kw)
    return h, w


def gradient_axes(conv: Conv, axis: int) -> list[Axis]:
    """The axes, one a phase, of the gradient with respect to the input: there ``inputs`` are the conv's outputs."""
    size, out, kernel = ((conv.h, conv.oh, conv.kh), (conv.w, conv.ow, conv.kw))[axis]
    stride, dilation, pad = conv.stride[axis], conv.dilation[axis], conv.pad[axis][0]
    phases = []
    for phase in range(min(stride, size)):
        # input i = o*stride + phase meets output (i + pad - k*dilation) / stride, for the k that divide
        ks = [k for k in range(kernel) if (phase + pad - k * dilation) % stride == 0][::-1]
        outputs = (size - phase + stride - 1) // stride
        first = (phase + pad - ks[0] * dilation) // stride if ks else 0
        spacing = dilation // math.gcd(dilation, stride)
        kernel_step = -(stride // math.gcd(dilation, stride))
        start = ks[0] if ks else 0
        phases.append(Axis(out, outputs, size, 1, first, spacing, len(ks), start, kernel_step, phase, stride))
    return phases


def split(total: int, largest: int) -> list[int]:
    """``total`` in as few parts as possible, none above ``largest``, as even as possible, larger ones first."""
    count = -(-total // largest)
    base, extra = divmod(total, count)
    return [base + 1] * extra + [base] * (count - extra)


def runs(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Consecutive pieces as runs of equal neighbours: (first, how many, size)."""
    found, at = [], 0
    for size, same in itertools.groupby(sizes):
        count = len(list(same))
        found.append((at, count, size))
        at += count * size
    return found


def evenly(total: int, count: int) -> list[tuple[int, int, int]]:
    """``total`` in so many parts, as even as possible: ``runs`` of a ``split``, without a list of all parts."""
    size, larger = divmod(total, count)
    pieces = [(0, larger, size + 1), (larger * (size + 1), count - larger, size)]
    return [piece for piece in pieces if piece[1]]


def blocks(total: int, target: int, piece: int = 1) -> list[tuple[int, int, int]]:
    """``total`` cut into blocks of about ``target``, as (first, how many, size): all of one size if a size within a
    third of ``target`` divides the total (every size costs code), one made of whole pieces if there is; else of two
    neighbouring sizes."""
    near = range(min(total, target + target // 3), max(1, target - target // 3) - 1, -1)
    even = [size for size in near if total % size == 0]
    if even:
        whole = next((size for size in even if size % piece == 0), even[0])
        return [(0, total // whole, whole)]
    return evenly(total, -(-total // target))
