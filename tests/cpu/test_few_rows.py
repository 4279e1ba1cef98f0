"""Products of few rows with a matrix as it lies, on caches so small that small matrices are large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, error, normal, run, unset

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import few_rows, gemm
from twofold.backends.cpu.kernels.gemm import Matmul

SMALL = replace(HOST, l1=8 << 10, l2=16 << 10, l3=1 << 20)
CASES = [
    Matmul(8, 64, 640),
    Matmul(1, 19, 517),  # steps and columns are left
    Matmul(3, 23, 1031),
    Matmul(16, 45, 1040),  # several blocks of columns for a thread
]


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_products_match_float64_on_any_number_of_threads(shape):
    assert few_rows.fits(SMALL, shape)
    a, b, bias = normal((shape.m, shape.k)), normal((shape.k, shape.n), 1), normal(shape.n, 2)
    before, found = normal((shape.m, shape.n), 3), []
    kernel = gemm.matmul(SMALL, shape, (ep.Residual(shape.n), ep.Bias()))
    assert kernel.once
    for threads in (1, 3):
        found += [unset((shape.m, shape.n)), before.copy()]
        run(kernel, [a, b, found[-2], before, bias], threads)
        run(kernel, [a, b, found[-1], found[-1], bias], threads)  # over what the epilogue reads
    assert error(found[0], a.astype(np.float64) @ b + before + bias) < 2e-6
    assert all(np.array_equal(found[0], other) for other in found[1:])
