"""benchmarks/conv_kernels.py: what it measures is right, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from twofold.backends.cpu import calibrate
from twofold.backends.cpu.kernels.shapes import Conv

ROOT = Path(__file__).parents[2]
SMALL = Conv(2, 9, 8, 8, 16, 3, 3, (2, 2), ((1, 1), (1, 1)), groups=2)


@pytest.fixture
def conv_kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import conv_kernels

    return conv_kernels


@pytest.mark.parametrize("which", ["forward", "data", "weights"])
def test_a_line_is_checked_against_float64(conv_kernels, which):
    pytest.importorskip("torch")
    line = conv_kernels.measure(SMALL, which, threads=1, rounds=1, torch=True)
    assert max(line["errors"].values()) < 2e-6
    assert line["ms"] > 0 and line["kernel"] > 0 and line["torch"] > 0
    assert conv_kernels.cells(line, 3)[:5] == ["3x3/2 9x8 8->16 g2 N=2", which, "1", "3", line["algorithm"]]


def test_a_network_s_convolutions_are_counted(conv_kernels):
    found = conv_kernels.shapes("squeezenet1_1", 2)
    assert sum(times for _, times in found) == 26  # 8 fires of 3, the first and the last layer
    assert all(conv.n == 2 for conv, _ in found)


def test_the_roof_is_the_lower_of_arithmetic_and_memory():
    rates = calibrate.Rates(fma=100.0, read=10.0, write=5.0, threads=1)
    assert rates.least_seconds(flops=1000, read=10, written=5) == 10e-9  # bound by arithmetic
    assert rates.least_seconds(flops=100, read=20, written=5) == 3e-9  # bound by memory
    assert calibrate.fma_rate(rounds=1) > 0.5
