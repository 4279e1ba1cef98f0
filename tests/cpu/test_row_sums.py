"""Reductions to results that lie side by side go row after row; transposed copies in squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw
from twofold.backends.cpu.emit.schedule import ROW_BLOCK, ROW_WIDTH, by_rows, schedule
from twofold.backends.cpu.lowering.steps import NestStep
from twofold.backends.cpu.machine import host

LANES = host().lanes
COLUMNS = [2 * LANES, 2 * LANES + 3, 3 * LANES, ROW_WIDTH * LANES + 5 * LANES + 1]


def compiled(function: Any, *arrays: np.ndarray) -> tuple[list[np.ndarray], Any]:
    """What ``function`` gives when compiled, and its program with all that it was made of."""
    with tw.device("cpu"):
        step = tw.compile(function)
        results = step(*map(tw.tensor, arrays))
        entry = [e for known in step._entries.values() for e in known][-1]
        program = next(iter(entry.runner.programs.values())).program.opened
    return [r.numpy() for r in (results if isinstance(results, tuple) else (results,))], program


def nests(program: Any) -> list[Any]:
    return [s.nest for s in program.steps if isinstance(s, NestStep)]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [33, 32 + ROW_BLOCK, 63])
def test_sums_of_rows_match_float64(rows, columns):
    rng = np.random.default_rng(rows * columns)
    g, x = (rng.standard_normal((8, rows, columns)).astype(np.float32) for _ in range(2))

    def sums(g, x):
        return tw.sum(g, axis=(0, 1)), tw.sum(g * (x - 0.5), axis=(0, 1)), tw.max(x, axis=(0, 1))

    got, program = compiled(sums, g, x)
    wide = g.astype(np.float64), x.astype(np.float64)
    for a, b in zip(got, (wide[0].sum((0, 1)), (wide[0] * (wide[1] - 0.5)).sum((0, 1)), wide[1].max((0, 1)))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    assert any(by_rows(n, schedule(n, LANES)) for n in nests(program))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_sums_of_other_floats_match_float64(dtype):
    x = np.random.default_rng(1).standard_normal((8, 49, 40)).astype(dtype)
    (got,), _ = compiled(lambda t: tw.mean(tw.astype(t, tw.float64), axis=(0, 1)), x)
    np.testing.assert_allclose(got, x.astype(np.float64).mean((0, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [LANES, 2 * LANES + 3, 50])
@pytest.mark.parametrize("columns", [LANES, 4 * LANES])
def test_transposed_copies_move_every_element(rows, columns):
    x = np.random.default_rng(2).standard_normal((3, columns, rows)).astype(np.float32)
    (got,), program = compiled(lambda t: tw.permute_dims(t, (0, 2, 1)) * 2.0, x)
    np.testing.assert_array_equal(got, 2 * x.transpose(0, 2, 1))
    assert any(schedule(n, LANES).across is not None for n in nests(program))
