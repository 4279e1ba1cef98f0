"""Convolution kernels against float64 NumPy: strides, dilations, groups, uneven padding, channel tails."""

from __future__ import annotations

import numpy as np
import pytest
from guarded import Guarded
from kernel_oracles import (
    HOST,
    data_gradient,
    error,
    forward,
    moments,
    normal,
    pack,
    run,
    unpack,
    unset,
    weight_gradient,
)

from twofold.backends.cpu.kernels import direct, weights, wgrad
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2, AVX512, NEON


def _pad(p: int):
    return ((p, p), (p, p))


CASES = [
    Conv(2, 7, 9, 5, 13, 3, 3, (1, 1), _pad(1)),
    Conv(2, 8, 11, 5, 13, 3, 3, (2, 2), _pad(1)),
    Conv(1, 8, 11, 6, 9, 3, 2, (2, 3), ((0, 1), (2, 1)), (2, 3), 3),
    Conv(2, 8, 8, 20, 17, 1, 1),
    Conv(1, 5, 29, 8, 24, 1, 1),
    Conv(2, 9, 8, 20, 17, 1, 1, (2, 2)),
    Conv(1, 5, 5, 1, 1, 5, 5, (1, 1), _pad(2)),
    Conv(1, 3, 3, 8, 8, 3, 3, (1, 1), _pad(3), (2, 2)),
    Conv(2, 19, 20, 3, 13, 7, 7, (2, 2), _pad(3)),
    Conv(2, 12, 12, 1, 6, 5, 5, (1, 1), _pad(2)),
    Conv(1, 23, 23, 3, 40, 11, 11, (4, 4)),
    Conv(2, 11, 9, 24, 24, 3, 3, (1, 1), _pad(1), groups=3),  # slabs: groups of less than a cache line
    Conv(2, 13, 15, 20, 30, 3, 3, (2, 2), ((1, 0), (0, 2)), groups=2),
    Conv(1, 17, 9, 24, 36, 2, 3, (1, 2), ((3, 1), (1, 4)), (2, 1), groups=2),
    Conv(1, 6, 6, 16, 32, 3, 3, (3, 3), _pad(1), groups=2),
    Conv(1, 13, 4, 17, 33, 1, 3, (1, 1), ((0, 0), (1, 1))),
    Conv(1, 4, 13, 12, 12, 3, 1, (2, 1), ((1, 0), (0, 0)), groups=12),
]


@pytest.mark.parametrize("conv", CASES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_direct_convolution_and_both_gradients(conv, threads):
    x, w = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    y, dy = unset((conv.n, conv.oh, conv.ow, conv.o)), normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    packed, backward = direct.packing(HOST, conv), direct.packing(HOST, conv, forward=False)
    run(direct.forward(HOST, conv, packed), [x, pack(conv, w, packed), y], threads)
    assert error(y, forward(conv, x, w)) < 2e-6
    dx = unset(x.shape)
    run(direct.data_gradient(HOST, conv, backward), [dy, pack(conv, w, backward), dx], threads)
    assert error(dx, data_gradient(conv, dy, w)) < 2e-6
    dw = unset(packed.size)
    run(wgrad.weight_gradient(HOST, conv, packed), [x, dy, dw], threads)
    assert error(unpack(conv, dw, packed), weight_gradient(conv, x, dy)) < 2e-6


def test_packed_orders_convert_into_each_other():
    conv = Conv(1, 6, 6, 10, 21, 3, 2)
    w = normal((21, 10, 3, 2))
    packed, backward = direct.packing(HOST, conv), direct.packing(HOST, conv, forward=False)
    there = unset(backward.size)
    run(weights.repack(HOST, packed, backward), [pack(conv, w, packed), there])
    assert np.array_equal(there, pack(conv, w, backward))
    assert np.array_equal(unpack(conv, there, backward), w)


@pytest.mark.skipif(not HOST.is_linux, reason="needs mprotect")
@pytest.mark.parametrize("machine", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
@pytest.mark.parametrize("ahead", [True, False])
def test_weights_are_packed_for_any_machines_vectors(machine, ahead):
    """Not for those of the machine that packs them: it wrote its own, longer ones, beyond the end."""
    conv = Conv(1, 6, 6, 10, 21, 3, 2)
    w, packed = normal((21, 10, 3, 2)), direct.packing(machine, conv, forward=ahead)
    there = Guarded(packed.size, True)
    run(weights.repack(HOST, weights.plain(conv), packed), [w, there.array])
    assert np.array_equal(unpack(conv, there.array, packed), w)


@pytest.mark.parametrize("conv", [CASES[0], CASES[4]], ids=str)
def test_epilogue_sees_every_result_once(conv):
    """Batch norm's scale and shift, a residual in a wider buffer, ReLU, and the statistics of what is stored."""
    x, w = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    scale, shift = normal(conv.o, 2), normal(conv.o, 3)
    wide = normal((conv.n, conv.oh, conv.ow, conv.o + 5), 4)
    packed = direct.packing(HOST, conv)
    stats = unset((direct.parts(HOST, conv, packed), 4, conv.o))
    steps = (ep.ScaleShift(), ep.Residual(conv.o + 5), ep.Relu(), ep.Statistics(conv.o))
    out = np.full((conv.n, conv.oh, conv.ow, conv.o + 3), 7, np.float32)
    run(
        direct.forward(HOST, conv, packed, steps, ldy=conv.o + 3),
        [x, pack(conv, w, packed), out, scale, shift, wide, stats],
    )
    expected = np.maximum(forward(conv, x, w) * scale + shift + wide[..., : conv.o], 0)
    assert error(out[..., : conv.o], expected) < 2e-6
    assert (out[..., conv.o :] == 7).all()
    mean, variance = moments(stats)
    assert error(mean, expected.mean((0, 1, 2))) < 1e-5
    assert error(variance, expected.var((0, 1, 2))) < 1e-5


def test_an_epilogue_names_each_array_once_that_it_reads_or_writes_along_with_the_results():
    twice = (ep.Bias(), ep.Residual(40), ep.Relu(), ep.Residual(40), ep.Residual(48, "other"), ep.Statistics(24))
    found = [(s.param, s.pitch, s.written) for s in ep.streams(twice, 32)]
    assert found == [("residual", 40, False), ("other", 48, False), ("y", 32, True)]
