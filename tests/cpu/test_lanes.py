"""Convolutions of few channels a group, for which a vector holds whole groups, against float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, error, forward, moments, normal, run, unset

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import lanes, weights
from twofold.backends.cpu.kernels.shapes import Conv

PAD = ((1, 1), (1, 1))
SMALL = replace(HOST, l2=36 << 10)  # images do not fit: the next rows' pixels are asked for


def _conv(q: int, stride: int = 1) -> Conv:
    """Three vectors of channels, a last one that is not full where groups share it, and rows that no block divides."""
    channels = 3 * HOST.lanes + (q if q < HOST.lanes else 0)
    return Conv(2, 11, 33, channels, channels, 3, 3, (stride, stride), PAD, groups=channels // q)


@pytest.mark.parametrize("q", [q for q in (2, 4, 8, 16) if q <= HOST.lanes])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("machine", [HOST, SMALL], ids=["large", "small"])
def test_the_same_bits_by_any_number_of_threads_and_with_statistics(q, stride, machine):
    conv = _conv(q, stride)
    x, w, bias = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, q, 3, 3), 1), normal(conv.o, 2)
    packed = lanes.packing(machine, conv)
    u = unset(packed.size)
    run(weights.repack(machine, lanes.plain(machine, conv), packed), [w, u])
    steps = (ep.Bias(), ep.Relu(), ep.Statistics(conv.o))
    results = []
    for threads in (1, 2, 3):
        y, stats = unset((conv.n, conv.oh, conv.ow, conv.o)), unset((lanes.parts(conv), 4, conv.o))
        run(lanes.forward(machine, conv, packed, steps), [x, u, y, bias, stats], threads)
        results.append((y, stats))
    for y, stats in results[1:]:
        assert np.array_equal(y, results[0][0]) and np.array_equal(stats, results[0][1])
    y, stats = results[0]
    expected = np.maximum(forward(conv, x, w) + bias, 0)
    assert error(y, expected) < 2e-6
    assert error(moments(stats)[0], expected.mean((0, 1, 2))) < 1e-5


def test_blocks_of_rows_are_of_one_size_where_a_size_divides():
    one, _ = lanes.forward_axes(Conv(1, 28, 28, 256, 256, 3, 3, pad=PAD, groups=32))
    whole = lanes.Pass(1, one, one, 256, 256)
    rows, ahead = lanes.row_block(replace(HOST, lanes=16, l2=1 << 20), whole, 16)
    assert (rows, ahead) == (7, True)
    assert lanes.row_block(replace(HOST, lanes=16, l2=4 << 20), whole, 16) == (14, False)
