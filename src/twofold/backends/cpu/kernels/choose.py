"""Which kernel computes a convolution: the cost model, and one entry for each direction.

    choice = choose.forward(machine, conv, epilogue)
    # source (plain weights) -> choice.prepare[0] -> ... -> what choice.kernel reads as its second parameter

Each entry estimates the cycles of every kernel that fits and takes the cheapest; TWOFOLD_CONV=direct leaves Winograd and
Strassen out (the error of F(4x4) is about ten times that of direct convolution, 1e-5 of the largest value instead of 1e-6,
Strassen's about twice).

Where ``takes_bf16``, images may be bfloat16 (``dtype``). Direct kernels then add products of pairs, twice as many in a
cycle; Winograd computes in float32 what it reads and writes in 16 bits, which is still quicker where pixels are many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from twofold.backends.cpu.kernels import (
    direct,
    fold,
    lanes,
    planes_wgrad,
    repack,
    strassen,
    strassen_conv,
    weights,
    wgrad,
    winograd,
    winograd_conv,
    winograd_wgrad,
)
from twofold.backends.cpu.kernels.epilogue import Epilogue
from twofold.backends.cpu.kernels.shapes import Conv, halved, split
from twofold.backends.cpu.kernels.tile import most_pixels, step_cycles
from twofold.backends.cpu.kernels.weights import Packed, Plain
from twofold.backends.cpu.machine import Machine, num_threads
from twofold.backends.cpu.program import Kernel
from twofold.base import flags
from twofold.base.dtypes import DType, bfloat16, float32
from twofold.base.errors import ArgumentError

Source = Packed | Plain

# Cycles per vector and point of Winograd's transforms (of F(4x4): about 150 instructions and 72 memory accesses, the rest
# is waiting for L2), and bytes a core reads per cycle from L3 and from memory, and writes; measured on Zen 3.
_TRANSFORM = 300.0 / winograd.F4.points
_WEIGHT_TRANSFORM = 110.0 / winograd.F4.points
_HUGE = 4  # times L3: constant weights that are larger when transformed are transformed at every call, from 1 on if
_MANY = 32  # or more tiles meet each of them: to transform it is little then (1 to 2 % of a network's time)
_LEAN = 0.85  # and these may take a sixth longer than the best, for half the memory or a quarter
_INSIDE = 190.0 / winograd.F4.points  # the same into L2, on the way; measured on Zen 4
_STREAM = 8.0
_FETCH = 6.0
_SEEN = 0.25  # of the shorter of fetching weights and multiplying is not hidden behind the longer; measured on Zen 5
_WRITE = 3.0
_SCHEMES = (winograd.F4, winograd.F2, winograd.F2_5)
_LEVELS = (1, 2)  # of Strassen's algorithm
_WORTH = 0.96  # of direct kernels' time, at most: less is no reason for larger weights


@dataclass(frozen=True)
class Prepare:
    """One step of preparing the weights: a kernel (input, output) whose output has ``size`` float32 elements."""

    kernel: Kernel
    size: int


@dataclass(frozen=True)
class Choice:
    """A kernel and what it needs. ``weights`` is the packed order that ``prepare`` passes through or ends with."""

    algorithm: str  # direct, winograd, strassen, lanes, planes or fold
    kernel: Kernel
    weights: Packed
    prepare: tuple[Prepare, ...] = ()


def packed_weights(machine: Machine, conv: Conv) -> Packed:
    """The order in which parameters may be kept between steps: forward kernels read it, weight gradients write it."""
    machine = _fitted(machine, conv, conv.o)
    return lanes.packing(machine, conv) if lanes.fits(machine, conv) else direct.packing(machine, conv)


def kept_weights(machine: Machine, conv: Conv) -> Packed | None:
    """``packed_weights`` where they may be kept so: no block is cut, and kernels of all directions start from that order."""
    packed = packed_weights(machine, conv)
    whole = packed.outs % packed.block == 0 and repack.fits(packed)
    return packed if whole and not lanes.fits(_fitted(machine, conv, conv.o), conv) else None


def plain_weights(machine: Machine, conv: Conv) -> Plain:
    """The users' order ``(O, I, KH, KW)``, as a source for ``prepare`` or a target of ``weights.repack``."""
    return lanes.plain(machine, conv) if lanes.fits(machine, conv) else weights.plain(conv)


def takes_bf16(machine: Machine, conv: Conv) -> bool:
    """Whether there are kernels for images in bfloat16: the machine multiplies pairs, and groups are made of pairs."""
    pairs = conv.groups == 1 or conv.cg % 2 == conv.og % 2 == 0
    return machine.bf16_dots and pairs and not lanes.fits(machine, conv)


def forward(
    machine: Machine,
    conv: Conv,
    epilogue: Epilogue = (),
    source: Source | None = None,
    constant: bool = False,
    ldx: int = 0,
    ldy: int = 0,
    dtype: DType = float32,
) -> Choice:
    """Kernel (x, prepared weights, y, ...epilogue). ``source`` is the order the weights come in (default: plain);
    ``constant`` weights are prepared once: only fetching them costs. bfloat16 images have an even ``ldx``, and a zero after
    an odd number of channels; weights in pairs are for the caller to prepare."""
    machine = _fitted(machine, conv, conv.o)
    scheme = winograd_scheme(machine, conv, constant, dtype=dtype)
    if dtype is bfloat16 and not scheme:
        work = halved(conv)
        packed = direct.packing(machine, work, pairs=True)
        kernel = direct.forward(machine, work, packed, epilogue, (ldx or conv.c) // 2, ldy)
        return Choice("direct", replace(kernel, flops=conv.flops), packed)
    packed = packed_weights(machine, conv)
    prepare = _repack(machine, conv, source, packed)
    if lanes.fits(machine, conv):
        kernel = lanes.forward(machine, conv, packed, epilogue, ldx, ldy)
        return Choice("lanes", kernel, packed, prepare)
    if levels := strassen_levels(machine, conv, packed, constant):
        return _strassen(machine, conv, packed, levels, epilogue, prepare, ldx, ldy)
    if scheme:
        inside = _inside(machine, conv, packed, constant, scheme)
        kernel = winograd_conv.forward(machine, conv, packed, epilogue, ldx, ldy, scheme, dtype, inside)
        return Choice("winograd", kernel, packed, prepare + _transformed(machine, packed, False, scheme, inside))
    kernel = direct.forward(machine, conv, packed, epilogue, ldx, ldy)
    return Choice("direct", kernel, packed, prepare)


def parts(
    machine: Machine, conv: Conv, constant: bool = False, ldx: int = 0, dtype: DType = float32, forward: bool = True
) -> int:
    """In how many parts an epilogue gathers sums, in the forward kernel of the same arguments or the data gradient."""
    machine = _fitted(machine, conv, conv.o if forward else conv.c)
    if lanes.fits(machine, conv):
        return lanes.parts(conv, forward)
    if scheme := (winograd_scheme if forward else winograd_scheme_backward)(machine, conv, constant, dtype=dtype):
        same = conv if forward else winograd_conv.reversed_conv(conv)
        return winograd_conv.plan_forward(machine, same, scheme).parts
    if dtype is bfloat16:
        work, ldx = halved(conv, forward), (ldx or (conv.c if forward else conv.o)) // 2
        return direct.parts(machine, work, direct.packing(machine, work, forward, pairs=True), ldx)
    packed = direct.packing(machine, conv, forward)
    if levels := strassen_levels(machine, conv, packed, constant):
        return strassen_conv.parts(machine, conv, packed, levels)
    return direct.parts(machine, conv, packed, ldx)


def data_gradient(
    machine: Machine,
    conv: Conv,
    epilogue: Epilogue = (),
    source: Source | None = None,
    constant: bool = False,
    ldx: int = 0,
    ldy: int = 0,
    dtype: DType = float32,
) -> Choice:
    """Kernel (output's gradient, prepared weights, input's gradient, ...epilogue) with parameters named x, w or u, y; as
    ``forward``."""
    if dtype is float32 and not epilogue and fold.fits(machine, conv, ldy):
        packed = fold.packing(machine, conv)
        origin = fold.Unfolded(source or plain_weights(machine, conv), conv)
        prepare: tuple[Prepare, ...] = (Prepare(weights.repack(machine, origin, packed), packed.size),)
        return Choice("fold", fold.data_gradient(machine, conv, ldx), packed, prepare)
    machine = _fitted(machine, conv, conv.c)
    scheme = winograd_scheme_backward(machine, conv, constant, dtype)
    if dtype is bfloat16 and not scheme:
        work = halved(conv, forward=False)
        packed = direct.packing(machine, work, forward=False, pairs=True)
        kernel = direct.data_gradient(machine, work, packed, epilogue, (ldx or conv.o) // 2, ldy)
        return Choice("direct", replace(kernel, flops=conv.flops), packed)
    if lanes.fits(machine, conv):
        packed = lanes.packing(machine, conv, forward=False)
        transposed = lanes.backward(machine, conv, source or lanes.plain(machine, conv))
        prepare = (Prepare(weights.repack(machine, transposed, packed), packed.size),)
        return Choice("lanes", lanes.data_gradient(machine, conv, packed, epilogue, ldx, ldy), packed, prepare)
    packed = direct.packing(machine, conv, forward=False)
    prepare = _repack(machine, conv, source, packed)
    if levels := strassen_levels(machine, conv, packed, constant):
        return _strassen(machine, conv, packed, levels, epilogue, prepare, ldx, ldy)
    if scheme:
        inside = _inside(machine, winograd_conv.reversed_conv(conv), packed, constant, scheme)
        kernel = winograd_conv.data_gradient(machine, conv, packed, epilogue, ldx, ldy, scheme, dtype, inside)
        return Choice("winograd", kernel, packed, prepare + _transformed(machine, packed, True, scheme, inside))
    return Choice("direct", direct.data_gradient(machine, conv, packed, epilogue, ldx, ldy), packed, prepare)


def weight_gradient(machine: Machine, conv: Conv, ldx: int = 0, ldy: int = 0, dtype: DType = float32) -> Choice:
    """Kernel (x, output's gradient, dw[, workspace]); ``dw``, float32, is in ``choice.weights`` order."""
    packed = packed_weights(machine, conv)
    if dtype is float32 and planes_wgrad.fits(machine, conv, packed, ldx, ldy):
        return Choice("planes", planes_wgrad.weight_gradient(machine, conv, packed), packed)
    machine = _fitted(machine, conv, conv.o)
    if lanes.fits(machine, conv) and lanes.shares(machine, conv):
        return Choice("lanes", lanes.weight_gradient(machine, conv, packed, ldx, ldy), packed)
    if winograd_scheme(machine, conv, False, (winograd.F4,), dtype):
        return Choice("winograd", winograd_wgrad.weight_gradient(machine, conv, packed, ldx, ldy, dtype), packed)
    return Choice("direct", wgrad.weight_gradient(machine, conv, packed, ldx, ldy, dtype), packed)


def _mode() -> str:
    """Which algorithms are allowed."""
    mode = flags.get("TWOFOLD_CONV")
    if mode not in ("auto", "direct"):
        raise ArgumentError(f"TWOFOLD_CONV is {mode!r}; expected 'auto' or 'direct'")
    return mode


def winograd_scheme(
    machine: Machine,
    conv: Conv,
    constant: bool,
    schemes: Sequence[winograd.Scheme] = _SCHEMES,
    dtype: DType = float32,
) -> winograd.Scheme | None:
    """The form of Winograd that is estimated to be fastest; None where it is not allowed, does not fit, or direct
    convolution (of images of ``dtype``) is faster."""
    schemes = [scheme for scheme in schemes if winograd.fits(conv, scheme)]
    if _mode() == "direct" or not schemes:
        return None
    best = min(schemes, key=lambda scheme: winograd_cycles(machine, conv, constant, scheme))
    rival = halved(conv) if dtype is bfloat16 else conv
    return best if winograd_cycles(machine, conv, constant, best) < direct_cycles(machine, rival) else None


def winograd_scheme_backward(
    machine: Machine, conv: Conv, constant: bool, dtype: DType = float32
) -> winograd.Scheme | None:
    """The same for the data gradient, which is a convolution of the output's gradient with reversed weights."""
    if not (_pads_within(conv) and any(winograd.fits(conv, scheme) for scheme in _SCHEMES)):
        return None
    return winograd_scheme(machine, winograd_conv.reversed_conv(conv), constant, dtype=dtype)


def strassen_levels(machine: Machine, conv: Conv, packed: Packed, constant: bool) -> int:
    """Levels of Strassen's algorithm that are estimated to be fastest for a 1x1 convolution, or with backward ``packed``
    weights for its data gradient; 0 where it is not allowed, does not fit, or saves too little. Not for ``constant`` weights,
    which would be kept up to three times as large."""
    if constant or _mode() == "direct" or not direct.is_pointwise(conv):
        return 0
    found = [(_strassen_cycles(machine, conv, packed, levels), levels) for levels in _LEVELS]
    least, best = min(found)
    return best if least < _WORTH * direct_cycles(machine, conv, packed.forward) else 0


def _strassen_cycles(machine: Machine, conv: Conv, packed: Packed, levels: int) -> float:
    """Estimated cycles on one core, those of the weight transform included; infinite if it does not fit."""
    if not strassen.fits(packed, levels):
        return math.inf
    size = 4 * strassen.weights_size(packed, levels)
    plan = strassen_conv.plan(machine, conv.n, conv.h * conv.w, packed, levels)
    return max(plan.cycles * (1 + plan.waiting), size / _FETCH) + size / _WRITE


def _fitted(machine: Machine, conv: Conv, outs: int) -> Machine:
    """The machine with vectors that suit a kernel of so many output channels."""
    return machine.narrowed(outs) if conv.groups == 1 else machine


def direct_cycles(machine: Machine, conv: Conv, forward: bool = True) -> float:
    """Estimated cycles of the direct forward kernel on one core, or (without stride) of the data gradient."""
    packed = direct.packing(machine, conv, forward)
    rows, width, ins = (conv.n * conv.oh, conv.ow, conv.c) if forward else (conv.n * conv.h, conv.w, conv.o)
    if direct.is_pointwise(conv):
        rows, width = 1, rows * width
    steps, pitch = conv.kh * conv.kw * ins * rows, 4 * ins * conv.stride[1]
    cycles = 0.0
    for _, count, outs in packed.kinds():
        vectors = -(-outs // machine.lanes)
        tiles = split(width, most_pixels(machine, vectors, pitch))
        cycles += count * sum(step_cycles(machine, pixels, vectors) for pixels in tiles)
    return steps * cycles


def winograd_cycles(machine: Machine, conv: Conv, constant: bool, scheme: winograd.Scheme = winograd.F4) -> float:
    """Estimated cycles of the Winograd forward kernel on one core, its weight transform included unless
    ``constant``. Transformed weights are fetched while products are done.
    """
    plan = winograd_conv.plan_forward(machine, conv, scheme)
    packed = direct.packing(machine, conv)
    columns = -(-conv.c // machine.lanes), -(-conv.o // machine.lanes)
    products = 0.0
    for _, count, outs in packed.kinds():
        vectors = -(-outs // machine.lanes)
        most = most_pixels(machine, vectors)
        for _, blocks, tiles in plan.sizes:
            products += blocks * count * sum(step_cycles(machine, rows, vectors) for rows in split(tiles, most))
    products *= scheme.points * conv.c
    transforms = plan.grid.count * sum(columns) * scheme.points * _TRANSFORM
    rounds = 1 if plan.staged else sum(blocks for _, blocks, _ in plan.sizes)
    size = 4 * winograd.weights_size(packed, scheme)
    read = max(rounds * size / _STREAM if size > machine.l2 // 2 else 0.0, size / _FETCH)
    if _inside(machine, conv, packed, constant, scheme):
        products += columns[1] * conv.c * scheme.points * _INSIDE
        return (_together(products, 4 * packed.size / _FETCH) + transforms) * (_LEAN if constant else 1.0)
    written = 0.0 if constant else columns[1] * conv.c * scheme.points * _WEIGHT_TRANSFORM + size / _WRITE
    return _together(products, read) + transforms + written


def _together(products: float, read: float) -> float:
    """Cycles of two things that are done at the same time."""
    return max(products, read) + _SEEN * min(products, read)


def _inside(machine: Machine, conv: Conv, packed: Packed, constant: bool, scheme: winograd.Scheme) -> bool:
    """Whether the kernel that computes this forward convolution transforms its weights on the way: those that change at every
    call where L3 does not keep them until they are read, constant ones only where it keeps little of them, so that reading
    a quarter of the bytes makes up for the work, or tiles are many (and they are not kept four times as large)."""
    few = winograd.TileGrid(conv, scheme).count < _MANY
    large = 4 * winograd.weights_size(packed, scheme) > (_HUGE if constant and few else 1) * machine.l3
    return large and winograd_conv.stretch(machine, conv, packed, scheme, num_threads()) > 0


def _transformed(
    machine: Machine, packed: Packed, flip: bool, scheme: winograd.Scheme, inside: bool
) -> tuple[Prepare, ...]:
    if inside:
        return ()
    return (Prepare(winograd.transform_weights(machine, packed, flip, scheme), winograd.weights_size(packed, scheme)),)


def _strassen(
    machine: Machine,
    conv: Conv,
    packed: Packed,
    levels: int,
    epilogue: Epilogue,
    prepare: tuple[Prepare, ...],
    ldx: int,
    ldy: int,
) -> Choice:
    """Forward or, with backward ``packed`` weights, the data gradient: both are products of pixels and weights."""
    kernel = strassen_conv.forward(machine, conv, packed, levels, epilogue, ldx, ldy)
    summed = Prepare(strassen.transform_weights(machine, packed, levels), strassen.weights_size(packed, levels))
    return Choice("strassen", kernel, packed, (*prepare, summed))


def _repack(machine: Machine, conv: Conv, source: Source | None, packed: Packed) -> tuple[Prepare, ...]:
    source = source or plain_weights(machine, conv)
    return () if source == packed else (Prepare(weights.repack(machine, source, packed), packed.size),)


def _pads_within(conv: Conv) -> bool:
    """The reversed convolution pads by kernel - 1 - pad on every side: more padding than that would crop."""
    return all(side < kernel for pair, kernel in zip(conv.pad, (conv.kh, conv.kw)) for side in pair)


__all__ = [
    "Choice", "Prepare", "data_gradient", "forward", "kept_weights", "packed_weights", "parts", "plain_weights", "takes_bf16",
    "weight_gradient", "winograd_scheme", "winograd_scheme_backward",
]  # fmt: skip
