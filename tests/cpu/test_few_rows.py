"""Products of few rows with a matrix as it lies, on caches so small that small matrices are large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from guarded import Guarded
from kernel_oracles import HOST, error, normal, run, unset

from twofold.backends.cpu import jit
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import few_rows, gemm
from twofold.backends.cpu.kernels.gemm import Matmul
from twofold.backends.cpu.machine import AVX2, AVX512, NEON

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


@pytest.mark.skipif(not HOST.is_linux, reason="needs mprotect")
@pytest.mark.parametrize("after", [True, False], ids=["end", "start"])
def test_nothing_outside_the_buffers_is_touched(after):
    """A read or write one element too far would end this process."""
    for shape in CASES:
        kernel = gemm.matmul(SMALL, shape)
        sizes = [shape.m * shape.k, shape.k * shape.n, shape.m * shape.n]
        run(kernel, [Guarded(size, after).array for size in sizes], 2)


@pytest.mark.parametrize("machine", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
def test_kernels_are_emitted_for_other_machines(machine):
    small = replace(machine, l1=SMALL.l1, l2=SMALL.l2, l3=SMALL.l3)
    for shape in CASES:
        assert jit.compile_ir(gemm.matmul(small, shape, (ep.Bias(),)).ir, machine).startswith(b"\x7fELF")
