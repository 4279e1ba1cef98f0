"""Outer products with few steps of k, on caches so small that small results are large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, error, normal, run, unset

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import gemm, outer
from twofold.backends.cpu.kernels.gemm import Matmul

SMALL = replace(HOST, l1=8 << 10, l2=2 << 10, l3=1 << 10)
CASES = [
    Matmul(300, 8, 77, 1, True),
    Matmul(64, 1, 513, 1, True),
    Matmul(513, 16, 48, 1, True),  # whole lines: written past the caches
    Matmul(259, 4, 1040, 1, True),  # an odd row, strips and blocks
]


def _operands(shape: Matmul) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return normal((shape.k, shape.m)), normal((shape.k, shape.n), 1), normal(shape.n, 2)


@pytest.mark.parametrize("shape", CASES, ids=str)
@pytest.mark.parametrize("off", [0, 4], ids=["aligned", "unaligned"])
def test_outer_products_match_float64_on_any_number_of_threads(shape, off):
    assert outer.fits(SMALL, shape)
    a, b, bias = _operands(shape)
    kernel, found = gemm.matmul(SMALL, shape, (ep.Bias(), ep.Relu())), []
    for threads in (1, 3):
        raw = unset(shape.m * shape.n + 32)
        start = (-raw.ctypes.data % 64) // 4 + off
        found.append(raw[start : start + shape.m * shape.n].reshape(shape.m, shape.n))
        run(kernel, [a, b, found[-1], bias], threads)
    assert error(found[0], np.maximum(a.T.astype(np.float64) @ b + bias, 0)) < 2e-6
    assert np.array_equal(*found)


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_results_may_lie_over_what_an_epilogue_reads(shape):
    a, b, _ = _operands(shape)
    before, kernel, found = normal((shape.m, shape.n), 3), gemm.matmul(SMALL, shape, (ep.Residual(shape.n),)), []
    assert kernel.once
    for threads in (1, 3):
        found.append(before.copy())
        run(kernel, [a, b, found[-1], found[-1]], threads)
    assert error(found[0], a.T.astype(np.float64) @ b + before) < 2e-6
    assert np.array_equal(*found)
