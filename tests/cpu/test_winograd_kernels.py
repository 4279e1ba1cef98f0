"""Winograd kernels against float64 NumPy: forward, data gradient, weight gradient; edges, tails, both schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
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

from twofold.backends.cpu.kernels import direct, winograd, winograd_conv, winograd_wgrad
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2, AVX512

ONE = ((1, 1), (1, 1))
CASES = [
    Conv(1, 8, 8, 16, 16, 3, 3, pad=ONE),
    Conv(2, 7, 9, 5, 13, 3, 3, pad=ONE),
    Conv(1, 3, 3, 9, 20, 3, 3),
    Conv(3, 14, 14, 24, 40, 3, 3, pad=ONE),
    Conv(1, 40, 42, 6, 17, 3, 3, pad=((0, 1), (2, 0))),
    Conv(8, 28, 28, 32, 32, 3, 3, pad=ONE),
    Conv(1, 56, 56, 64, 64, 3, 3, pad=ONE),
]
TWO = ((2, 2), (2, 2))
LARGER = [
    Conv(1, 8, 8, 16, 16, 5, 5, pad=TWO),
    Conv(2, 7, 9, 5, 13, 5, 5, pad=ONE),
    Conv(1, 5, 5, 9, 20, 5, 5),
    Conv(3, 14, 14, 24, 40, 5, 5, pad=TWO),
    Conv(1, 40, 42, 6, 17, 5, 5, pad=((0, 4), (3, 0))),
    Conv(8, 27, 27, 32, 48, 5, 5, pad=TWO),
]
F2, F4, F2_5 = winograd.F2, winograd.F4, winograd.F2_5
BOUND = {F4: 2e-5, F2: 2e-6, F2_5: 2e-5}  # in float32


def transformed(conv, w, packed, flip=False, scheme=F4):
    u = unset(winograd.weights_size(packed, scheme))
    run(winograd.transform_weights(HOST, packed, flip, scheme), [pack(conv, w, packed), u])
    return u


def each(cases, larger):
    pairs = [(conv, scheme) for conv in cases for scheme in (F4, F2)] + [(conv, F2_5) for conv in larger]
    return pytest.mark.parametrize(("conv", "scheme"), pairs, ids=str)


@each(CASES, LARGER)
def test_forward_and_data_gradient(conv, scheme):
    x, w = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, conv.c, conv.kh, conv.kw), 1)
    dy = normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    packed, backward = direct.packing(HOST, conv), direct.packing(HOST, conv, forward=False)
    results = []
    for threads in (1, 3):
        y, dx = unset(dy.shape), unset(x.shape)
        u, back = transformed(conv, w, packed, scheme=scheme), transformed(conv, w, backward, True, scheme)
        run(winograd_conv.forward(HOST, conv, packed, scheme=scheme), [x, u, y], threads)
        run(winograd_conv.data_gradient(HOST, conv, backward, scheme=scheme), [dy, back, dx], threads)
        results.append((y, dx))
    assert error(results[0][0], forward(conv, x, w)) < BOUND[scheme]
    assert error(results[0][1], data_gradient(conv, dy, w)) < BOUND[scheme]
    assert all(np.array_equal(a, b) for a, b in zip(*results))


INSIDE = [
    Conv(1, 7, 7, 64, 72, 3, 3, pad=ONE),
    Conv(2, 6, 9, 96, 24, 3, 3),
    Conv(1, 14, 14, 48, 96, 3, 3, pad=ONE),
    Conv(3, 5, 5, 5, 13, 3, 3, pad=ONE),
]


@pytest.mark.parametrize("conv", INSIDE, ids=str)
def test_weights_transformed_inside_give_the_same_bits(conv):
    x, dy = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    w = normal((conv.o, conv.c, 3, 3), 1)
    packed, backward = direct.packing(HOST, conv), direct.packing(HOST, conv, forward=False)
    assert winograd_conv.plan_forward(HOST, conv).staged
    expected = unset(dy.shape), unset(x.shape)
    run(winograd_conv.forward(HOST, conv, packed), [x, transformed(conv, w, packed), expected[0]])
    run(winograd_conv.data_gradient(HOST, conv, backward), [dy, transformed(conv, w, backward, True), expected[1]])
    for threads in (1, 3):
        y, dx = unset(dy.shape), unset(x.shape)
        run(winograd_conv.forward(HOST, conv, packed, inside=True), [x, pack(conv, w, packed), y], threads)
        run(winograd_conv.data_gradient(HOST, conv, backward, inside=True), [dy, pack(conv, w, backward), dx], threads)
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(dx, expected[1])


@pytest.mark.parametrize("conv", CASES, ids=str)
def test_weight_gradient(conv):
    x, dy = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    packed = direct.packing(HOST, conv)
    results = []
    for threads in (1, 3):
        dw = unset(packed.size)
        run(winograd_wgrad.weight_gradient(HOST, conv, packed), [x, dy, dw], threads)
        results.append(dw)
    assert error(unpack(conv, results[0], packed), weight_gradient(conv, x, dy)) < BOUND[F4]
    assert np.array_equal(*results)


@pytest.mark.parametrize(
    "conv",
    [
        Conv(7, 15, 16, 21, 40, 3, 3, pad=ONE),
        Conv(1, 50, 29, 40, 17, 3, 3, pad=ONE),
        Conv(5, 16, 16, 64, 64, 3, 3, pad=ONE),  # one block of more tiles than usual
    ],
    ids=str,
)
def test_weight_gradient_in_blocks_that_add_up_sums_or_taps(conv):
    x, dy = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    packed, expected = direct.packing(HOST, conv), weight_gradient(conv, x, dy)
    for machine in (HOST, replace(HOST, l2=0)):
        assert winograd_wgrad.keeps_sums(machine, conv, 65) == (machine is HOST)
        results = [unset(packed.size) for _ in (1, 3)]
        for dw, threads in zip(results, (1, 3)):
            run(winograd_wgrad.weight_gradient(machine, conv, packed), [x, dy, dw], threads)
        assert error(unpack(conv, results[0], packed), expected) < BOUND[F4]
        assert np.array_equal(*results)


@each(CASES[3:6], LARGER[3:])
def test_epilogue(conv, scheme):
    x, w = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, conv.c, conv.kh, conv.kw), 1)
    bias, residual = normal(conv.o, 2), normal((conv.n, conv.oh, conv.ow, conv.o), 3)
    packed = direct.packing(HOST, conv)
    stats = unset((winograd_conv.plan_forward(HOST, conv, scheme).parts, 4, conv.o))
    y = unset(residual.shape)
    steps = (ep.Bias(), ep.Residual(conv.o), ep.Relu(), ep.Statistics(conv.o))
    u = transformed(conv, w, packed, scheme=scheme)
    run(winograd_conv.forward(HOST, conv, packed, steps, scheme=scheme), [x, u, y, bias, residual, stats])
    expected = np.maximum(forward(conv, x, w) + bias + residual, 0)
    assert error(y, expected) < BOUND[scheme]
    mean, variance = moments(stats)
    assert error(mean, expected.mean((0, 1, 2))) < 1e-4
    assert error(variance, expected.var((0, 1, 2))) < 1e-4


def test_few_blocks_are_an_even_number_and_cover_all_tiles():
    for size in (40, 48, 52, 56, 60):
        conv = Conv(1, size, size, 64, 64, 3, 3, pad=ONE)
        plan = winograd_conv.plan_forward(AVX2, conv)
        assert plan.staged or plan.parts % 2 == 0 or plan.parts >= winograd_conv.FEW_BLOCKS
        assert sum(count * tiles for _, count, tiles in plan.sizes) == plan.grid.count
    assert winograd_conv.plan_forward(AVX2, CASES[-1]).sizes == [(0, 4, 25), (100, 4, 24)]


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
def test_large_weights_are_streamed_where_alignment_allows(shift):
    conv = Conv(1, 4, 4, 160, 96, 3, 3, pad=ONE)
    packed, w = direct.packing(HOST, conv), normal((96, 160, 3, 3))
    size = winograd.weights_size(packed)
    assert 4 * size > AVX512.l2 and "!nontemporal" in winograd.transform_weights(AVX512, packed).ir
    u = unset(size + 1)[shift:][:size]
    run(winograd.transform_weights(HOST, packed), [pack(conv, w, packed), u])
    x, y = normal((1, 4, 4, 160), 1), unset((1, 4, 4, 96))
    run(winograd_conv.forward(HOST, conv, packed), [x, u, y])
    assert error(y, forward(conv, x, w)) < BOUND[F4]
