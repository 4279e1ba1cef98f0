"""Matrix-product kernels against float64 NumPy: transposes, batches, tails, many and few rows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, error, normal, run, unset

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.gemm import Matmul, matmul

SIZES = [
    (1, 1, 1, 1),
    (7, 5, 3, 2),
    (1, 300, 77, 1),
    (5, 33, 40, 3),
    (50, 70, 90, 1),
    (100, 2500, 37, 1),
    (49, 4200, 9, 1),
]
CASES = [Matmul(*s, ta, tb) for s, ta, tb in itertools.product(SIZES, (False, True), (False, True))]
CASES += [
    Matmul(9, 8, 7, 4, a_batch=True, b_batch=False),
    Matmul(9, 8, 7, 4, transpose_b=True, a_batch=False),
    Matmul(40, 8, 70, 4, transpose_b=True, b_batch=False),
    Matmul(5, 0, 7),
    Matmul(16, 37, 20, 2, transpose_b=True),
    Matmul(7, 2101, 37, 2, transpose_b=True),
    Matmul(13, 1500, 50, 3, transpose_b=True, a_batch=False),
    Matmul(1, 9001, 35, transpose_b=True),
    Matmul(3, 21, 1031),
    Matmul(53, 70, 75, 3, transpose_a=True, a_batch=False),
    Matmul(50, 300, 41, 2, transpose_a=True),
]


SMALL = replace(HOST, l2=1 << 14, l3=1 << 14)  # the caches of a machine on which these matrices are large
OWN = [
    Matmul(m, k, n, batch, ta, tb)
    for (m, k, n, batch), ta, tb in itertools.product(
        [(37, 70, 1055, 1), (19, 261, 1024, 1), (130, 100, 1040, 1), (23, 141, 530, 3)], (False, True), (False, True)
    )
]


def _check(shape: Matmul, threads: int, machine=HOST, note: str = "") -> np.ndarray:
    a = normal(
        (shape.batch if shape.a_batch else 1, *((shape.k, shape.m) if shape.transpose_a else (shape.m, shape.k)))
    )
    b = normal(
        (shape.batch if shape.b_batch else 1, *((shape.n, shape.k) if shape.transpose_b else (shape.k, shape.n))), 1
    )
    bias, c = normal(shape.n, 2), unset((shape.batch, shape.m, shape.n))
    kernel = matmul(machine, shape, (ep.Bias(), ep.Relu()))
    assert note in kernel.note
    run(kernel, [a, b, c, bias], threads)
    wide = [array.astype(np.float64) for array in (a, b)]
    left = wide[0].swapaxes(1, 2) if shape.transpose_a else wide[0]
    right = wide[1].swapaxes(1, 2) if shape.transpose_b else wide[1]
    assert error(c, np.maximum(left @ right + bias, 0)) < 2e-6
    return c


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_matmul_matches_float64_on_any_number_of_threads(shape):
    assert np.array_equal(_check(shape, 1), _check(shape, 3))


@pytest.mark.parametrize("shape", OWN, ids=str)
def test_large_matrices_of_which_threads_pack_blocks_of_their_own(shape):
    """Also in several blocks of k; nobody needs room for the whole matrix."""
    one, three = (_check(shape, threads, SMALL, "blocks of b packed") for threads in (1, 3))
    assert np.array_equal(one, three)
    room = matmul(SMALL, shape).workspace
    assert room == (4 * shape.batch * shape.m * shape.k if shape.transpose_a and shape.k >= 64 else 0)
