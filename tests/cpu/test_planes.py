"""Convolutions of one channel with pixels in the lanes, the max pooling in them, weight gradients, against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_oracles import HOST, error, forward, normal, run, unpack, unset, weight_gradient

import twofold as tw
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.kernels import choose, interleave, planes, planes_wgrad
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.pool import Pool
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2
from twofold.ir.text import parse_graph

MACHINES = [HOST, AVX2] if HOST.is_x86 else [HOST]
EPILOGUE = (ep.Bias(), ep.Relu())
CASES = [
    Conv(2, 32, 32, 1, 6, 5, 5),
    Conv(1, 9, 27, 1, 1, 2, 3),
    Conv(3, 8, 45, 1, 5, 3, 3),
    Conv(1, 7, 24, 1, 8, 3, 1),
    Conv(2, 6, 70, 1, 3, 1, 7),
]


def _expected(conv: Conv, x, w, bias):
    return np.maximum(forward(conv, x, w) + bias, 0.0)


def _halved(y):
    n, h, w, c = y.shape
    y = y[:, : h // 2 * 2, : w // 2 * 2]
    return y.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
@pytest.mark.parametrize("conv", CASES, ids=str)
def test_results_and_their_maxima(conv, machine):
    if not planes.fits(machine, conv, EPILOGUE, conv.o):
        assert 2 * conv.o + planes.SPARE > machine.registers
        return
    x, w, bias = normal((conv.n, conv.h, conv.w, 1)), normal((conv.o, 1, conv.kh, conv.kw), 1), normal((conv.o,), 2)
    expected = _expected(conv, x, w, bias)
    results = []
    for threads in (1, 3):
        y, half = unset(expected.shape), unset(_halved(expected).shape)
        run(planes.forward(machine, conv, EPILOGUE), [x, w, y, bias], threads)
        run(planes.forward(machine, conv, EPILOGUE, True), [x, w, half, bias], threads)
        results.append((y, half))
    assert error(results[0][0], expected) < 1e-6
    np.testing.assert_array_equal(results[0][1], _halved(results[0][0]))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results))


def test_the_largest_of_a_window_with_nan_is_nan():
    conv = Conv(1, 8, HOST.lanes + 4, 1, 2, 3, 3)
    x, w = normal((1, conv.h, conv.w, 1)), normal((2, 1, 3, 3), 1)
    x[0, 4, 5] = np.nan
    y, half = unset((1, conv.oh, conv.ow, 2)), unset((1, conv.oh // 2, conv.ow // 2, 2))
    run(planes.forward(HOST, conv), [x, w, y])
    run(planes.forward(HOST, conv, (), True), [x, w, half])
    np.testing.assert_array_equal(half, _halved(y))
    assert np.isnan(half).any() and not np.isnan(half).all()


def test_what_it_takes():
    conv, half = Conv(1, 32, 32, 1, 6, 5, 5), Pool(1, 28, 28, 6, 14, 14, (2, 2), (2, 2))
    assert planes.fits(HOST, conv, EPILOGUE, 6) and planes.fits_pool(HOST, conv, half)
    assert not planes.fits(HOST, conv, (ep.Statistics(6),), 6), "sums need the channels together"
    assert not planes.fits(HOST, conv, (ep.Residual(6),), 6)
    assert not planes.fits(HOST, conv, EPILOGUE, 7), "a slice of a concatenation"
    assert not planes.fits(HOST, Conv(1, 32, 32, 2, 6, 5, 5), (), 6)
    assert not planes.fits(HOST, Conv(1, 32, 32, 1, 6, 5, 5, (2, 2)), (), 6)
    assert not planes.fits_pool(HOST, conv, Pool(1, 28, 28, 6, 13, 13, (3, 3), (2, 2)))
    assert not planes.fits_pool(HOST, conv, Pool(1, 28, 28, 6, 15, 15, (2, 2), (2, 2), ((1, 1), (1, 1))))


PADDED = [
    Conv(128, 14, 14, 1, 6, 5, 5, pad=((2, 2), (2, 2))),
    Conv(5, 7, 40, 1, 7, 3, 3, pad=((1, 0), (0, 3))),
    Conv(2, 40, 200, 1, 3, 2, 3, pad=((0, 0), (1, 1))),
]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
@pytest.mark.parametrize("conv", CASES + PADDED, ids=str)
def test_weight_gradients(conv, machine):
    packed = choose.packed_weights(machine, conv)
    if not planes_wgrad.fits(machine, conv, packed):
        assert packed.taps + planes_wgrad.ROWS + 2 > machine.registers
        return
    x, dy = normal((conv.n, conv.h, conv.w, 1)), normal((conv.n, conv.oh, conv.ow, conv.o), 1)
    kernel, found = planes_wgrad.weight_gradient(machine, conv, packed), []
    for threads in (1, 2, 3):
        found.append(unset(packed.size))
        run(kernel, [x, dy, found[-1]], threads)
    assert error(unpack(conv, found[0], packed), weight_gradient(conv, x, dy)) < 2e-6
    assert not np.isnan(found[0]).any() and all(found[0].tobytes() == other.tobytes() for other in found)


def test_weight_gradients_of_what():
    conv = Conv(1, 32, 32, 1, 6, 3, 3)
    packed = choose.packed_weights(HOST, conv)
    assert planes_wgrad.fits(HOST, conv, packed) and planes_wgrad.fits(HOST, conv, packed, 1, 6)
    assert not planes_wgrad.fits(HOST, conv, packed, 1, 7), "a slice of a concatenation"
    assert not planes_wgrad.fits(HOST, Conv(1, 32, 32, 1, 6, 3, 3, (2, 2)), packed)
    assert not planes_wgrad.fits(HOST, Conv(1, 3, 3, 1, 1, 3, 3), packed), "less than a vector in a row"


NETWORK = """graph f(%x: f32[2,1,20,32], %w: f32[4,1,3,3], %b: f32[4]) {{
  %0 = conv(%x, %w) {{strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1}} : f32[2,4,18,30]
  %1 = reshape(%b) {{shape=(1, 4, 1, 1)}} : f32[1,4,1,1]
  %2 = add(%0, %1) : f32[2,4,18,30]
  %3 = {function}(%2) : f32[2,4,18,30]
  %4 = max_pool(%3) {{window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=false}} : f32[2,4,9,15]
  %5 = sin(%4) : f32[2,4,9,15]
  return {outputs}
}}"""


@pytest.mark.parametrize("function", ["relu", "tanh", "negative"])
@pytest.mark.parametrize("outputs", ["%4", "%5", "%3, %4"])
def test_a_program_pools_in_the_convolution_only_what_nobody_else_reads(function, outputs):
    graph = parse_graph(NETWORK.format(function=function, outputs=outputs))
    program = CpuProgram(graph)
    names = [c.kernel.symbol.rpartition("_")[0] for c in program.calls]
    assert "conv_planes" in names and ("max_pool" in names) == (outputs != "%4"), names
    x, w, b = normal((2, 1, 20, 32)), normal((4, 1, 3, 3), 1), normal((4,), 2)
    y = forward(Conv(2, 20, 32, 1, 4, 3, 3), x.reshape(2, 20, 32, 1), w) + b
    y = {"relu": lambda v: np.maximum(v, 0), "tanh": np.tanh, "negative": np.negative}[function](y)
    pooled = _halved(y)
    expected = {"%4": [pooled], "%5": [np.sin(pooled)], "%3, %4": [y, pooled]}[outputs]
    for got, want in zip(program([x, w, b]), expected, strict=True):
        assert error(got, want.transpose(0, 3, 1, 2)) < 2e-6


def test_lenet5_as_eagerly():
    model = tw.zoo.create("lenet5").eval()
    for batch in (1, 3):
        x = tw.tensor(normal((batch, 1, 32, 32)))
        with tw.no_grad():
            np.testing.assert_allclose(tw.compile(model)(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
@pytest.mark.parametrize("channels", range(2, interleave.MOST + 1))
def test_planes_become_channels_last(channels, machine):
    for images, pixels in ((1, machine.lanes), (3, 2 * machine.lanes), (2, 5 * machine.lanes + 3)):
        assert interleave.fits(machine, channels, pixels)
        x, y = normal((images, channels, pixels)), unset((images, pixels, channels))
        run(interleave.channels_last(machine, images, channels, pixels), [x, y], 3)
        np.testing.assert_array_equal(y, x.transpose(0, 2, 1))
