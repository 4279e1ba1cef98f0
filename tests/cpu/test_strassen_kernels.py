"""Strassen's kernels against float64 NumPy: forward, data gradient; parts that overlap, tails, epilogues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, data_gradient, error, forward, moments, normal, pack, run, unset

from twofold.backends.cpu.kernels import choose, direct, strassen, strassen_conv
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2, AVX512

CASES = [
    Conv(1, 4, 4, 128, 128, 1, 1),
    Conv(2, 7, 7, 128, 256, 1, 1),  # 49 pixels: parts overlap
    Conv(3, 5, 3, 136, 128, 1, 1),  # parts of 34 inputs, or 68
    Conv(1, 3, 3, 132, 128, 1, 1),
    Conv(2, 14, 14, 256, 128, 1, 1),
    Conv(1, 28, 28, 128, 384, 1, 1),
]
BOUND = {1: 4e-6, 2: 8e-6}
EACH = [(conv, levels) for conv in CASES for levels in (1, 2)]


def transformed(conv, w, packed, levels):
    u = unset(strassen.weights_size(packed, levels))
    run(strassen.transform_weights(HOST, packed, levels), [pack(conv, w, packed), u])
    return u


def test_the_tables_multiply_matrices():
    rng = np.random.default_rng(0)
    for levels in (1, 2, 3):
        side = strassen.side(levels)
        a, b = rng.integers(-9, 9, (2, side, side))
        flat = [[x[cell] for cell in strassen.cells(levels)] for x in (a, b)]
        table_a, table_b, table_c = (np.array(strassen.power(t, levels)) for t in (strassen.A, strassen.B, strassen.C))
        assert table_a.shape == table_b.shape == (strassen.products(levels), side**2)
        c = table_c @ ((table_a @ flat[0]) * (table_b @ flat[1]))
        assert [(a @ b)[cell] for cell in strassen.cells(levels)] == list(c)


@pytest.mark.parametrize(("conv", "levels"), EACH, ids=str)
def test_forward_and_data_gradient(conv, levels):
    x, w = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, conv.c, 1, 1), 1)
    dy = normal((conv.n, conv.h, conv.w, conv.o), 2)
    for inputs, expected, ahead in ((x, forward(conv, x, w), True), (dy, data_gradient(conv, dy, w), False)):
        packed = direct.packing(HOST, conv, ahead)
        if not strassen.fits(packed, levels):  # backwards: inputs that are no whole blocks
            assert not ahead
            continue
        u, results = transformed(conv, w, packed, levels), []
        for threads in (1, 3):
            y = unset(expected.shape)
            run(strassen_conv.forward(HOST, conv, packed, levels), [inputs, u, y], threads)
            results.append(y)
        assert error(results[0], expected) < BOUND[levels]
        assert np.array_equal(*results)


@pytest.mark.parametrize(("conv", "levels"), EACH, ids=str)
def test_epilogue_and_slices(conv, levels):
    """Images in wider ones, on both sides; statistics count every pixel once."""
    ldx, ldy = conv.c + 8, conv.o + 16
    wide, w = normal((conv.n, conv.h, conv.w, ldx)), normal((conv.o, conv.c, 1, 1), 1)
    bias, residual = normal(conv.o, 2), normal((conv.n, conv.h, conv.w, conv.o), 3)
    packed = direct.packing(HOST, conv)
    stats = unset((strassen_conv.parts(HOST, conv, packed, levels), 4, conv.o))
    y = unset((conv.n, conv.h, conv.w, ldy))
    steps = (ep.Bias(), ep.Residual(conv.o), ep.Relu(), ep.Statistics(conv.o))
    kernel = strassen_conv.forward(HOST, conv, packed, levels, steps, ldx, ldy)
    run(kernel, [wide, transformed(conv, w, packed, levels), y, bias, residual, stats])
    expected = np.maximum(forward(conv, wide[..., : conv.c], w) + bias + residual, 0)
    assert error(y[..., : conv.o], expected) < BOUND[levels]
    assert np.isnan(y[..., conv.o :]).all()
    mean, variance = moments(stats)
    assert error(mean, expected.mean((0, 1, 2))) < 1e-4
    assert error(variance, expected.var((0, 1, 2))) < 1e-4


@pytest.mark.parametrize("levels", [1, 2])
def test_images_do_not_touch_each_other(levels):
    """One image of NaN or of huge values leaves the bits of the others alone."""
    conv = Conv(3, 7, 7, 128, 128, 1, 1)
    x, w = normal((3, 7, 7, 128)), normal((128, 128, 1, 1), 1)
    packed = direct.packing(HOST, conv)
    kernel, u, results = strassen_conv.forward(HOST, conv, packed, levels), transformed(conv, w, packed, levels), []
    for spoilt in (0.0, 1e30, np.nan):
        x[1], y = spoilt, unset((3, 7, 7, 128))
        run(kernel, [x, u, y])
        results.append(y[[0, 2]])
    assert np.isfinite(results[0]).all()
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_a_huge_image_is_planned_as_quickly(monkeypatch):
    asked, cycles = [], strassen_conv._chunk_cycles
    monkeypatch.setattr(strassen_conv, "_chunk_cycles", lambda *given: asked.append(given) or cycles(*given))
    conv = Conv(1, 999, 1001, 128, 128, 1, 1)
    plan = strassen_conv.plan(HOST, 1, 999 * 1001, direct.packing(HOST, conv), 2)
    assert sum(count * pixels for _, count, pixels in plan.chunks) == 999 * 1001
    assert 0 < len(asked) < 3 * strassen_conv.TRIED


def test_pixels_too_few_for_parts_are_left_to_others():
    packed = direct.packing(HOST, Conv(1, 14, 14, 128, 128, 1, 1))
    none = [pixels for pixels in range(1, 60) if not strassen_conv.plan(HOST, 1, pixels, packed, 2).chunks]
    assert none == [1, 2, 5], "all but the last of four equal parts overlap"


def test_chunks_cover_the_pixels_and_leave_few_threads_even_shares():
    for size, levels in ((7, 1), (14, 2), (28, 2), (56, 1)):
        conv = Conv(8, size, size, 512, 512, 1, 1)
        plan = strassen_conv.plan(AVX2, 8, size * size, direct.packing(AVX2, conv), levels)
        at = 0
        for first, count, pixels in plan.chunks:
            assert first == at and pixels >= strassen.side(levels)
            at += count * pixels
        assert at == size * size and plan.waiting < 0.05


def test_it_is_chosen_where_it_pays_and_can_be_refused(monkeypatch):
    one_a_cycle = replace(AVX512, fma_rate=1, l2=1 << 20, l3=32 << 20)
    body = Conv(8, 14, 14, 1024, 512, 1, 1)
    packed = direct.packing(one_a_cycle, body)
    levels = choose.strassen_levels(one_a_cycle, body, packed, False)
    assert levels == 2
    assert choose.forward(one_a_cycle, body).algorithm == choose.data_gradient(one_a_cycle, body).algorithm == "strassen"
    assert choose.parts(one_a_cycle, body) == strassen_conv.parts(one_a_cycle, body, packed, levels)
    for few in (Conv(8, 56, 56, 64, 64, 1, 1), Conv(1, 1, 1, 1024, 512, 1, 1), replace(body, stride=(2, 2))):
        assert choose.forward(one_a_cycle, few).algorithm == "direct"
    assert choose.forward(AVX2, replace(body, n=1)).algorithm == "direct"
    assert choose.forward(one_a_cycle, body, constant=True).algorithm == "direct", "they would be kept as large"
    assert choose.parts(one_a_cycle, body, constant=True) == direct.parts(one_a_cycle, body, packed)
    monkeypatch.setenv("TWOFOLD_CONV", "direct")
    assert choose.forward(one_a_cycle, body).algorithm == "direct"
    assert choose.parts(one_a_cycle, body) == direct.parts(one_a_cycle, body, packed)
