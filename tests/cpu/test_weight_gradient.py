"""The weight gradient's schedule on small caches: parts, slabs and chunks of all kinds, the same bits on any team."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from guarded import Guarded
from kernel_oracles import HOST, error, normal, run, unpack, unset, weight_gradient

from twofold.backends.cpu.kernels import direct, strips, wgrad
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.program import KernelBuilder

PAD = ((1, 1), (1, 1))
L1, L2 = 4 * 64 * HOST.lanes, 24 << 10  # bytes

CASES = {
    "a row of pixels, uneven slabs": (Conv(4, 8, 16, 70, 24, 1, 1), 32 * L1, 32 << 10),
    "many parts": (Conv(6, 8, 16, 12, 20, 1, 1), 32 * L1, 1 << 20),
    "rows with a rest": (Conv(2, 7, 9, 13, 37, 1, 1), 8 * L1, L2),
    "1x1, stride 2": (Conv(3, 9, 8, 20, 17, 1, 1, (2, 2)), 8 * L1, L2),
    "uneven slabs, padding": (Conv(3, 7, 6, 50, 11, 3, 3, pad=PAD), 8 * L1, L2),
    "several images at a time": (Conv(6, 4, 4, 9, 11, 3, 3, (2, 2), PAD), 16 * L1, L2),
    "slabs of several groups": (Conv(2, 6, 6, 56, 70, 3, 3, pad=PAD, groups=7), 8 * L1, L2),
    "slabs of one group": (Conv(2, 6, 6, 60, 40, 3, 3, (1, 2), PAD, groups=2), 8 * L1, 16 << 10),
    "slabs within groups": (Conv(2, 6, 6, 60, 40, 3, 3, (1, 2), PAD, groups=2), 8 * L1, 8 << 10),
    "taps of several rows": (Conv(3, 13, 9, 1, 6, 6, 3, pad=PAD), 8 * L1, L2),
    "taps of several rows, far apart": (Conv(2, 13, 9, 2, 20, 3, 3, pad=PAD, dilation=(2, 1)), 8 * L1, L2),
    "neighbouring taps": (Conv(2, 19, 20, 3, 13, 7, 7, (2, 2), ((3, 3), (3, 3))), 8 * L1, L2),
}


@pytest.mark.parametrize("name", CASES)
def test_any_schedule_any_team(name):
    conv, l1, l2 = CASES[name]
    machine = replace(HOST, l1=l1, l2=l2)
    packed = direct.packing(machine, conv)
    x, dy = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    # pixels of wider buffers
    wide_x, wide_dy = (np.concatenate([a, unset((*a.shape[:3], 3))], axis=3) for a in (x, dy))
    kernel = wgrad.weight_gradient(machine, conv, packed, conv.c + 3, conv.o + 3)
    found = []
    for threads in (1, 2, 3, 7):
        found.append(unset(packed.size))
        run(kernel, [wide_x, wide_dy, found[-1]], threads)
    assert error(unpack(conv, found[0], packed), weight_gradient(conv, x, dy)) < 2e-6
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.skipif(not HOST.is_linux, reason="needs mprotect")
@pytest.mark.parametrize("after", [True, False], ids=["end", "start"])
def test_nothing_outside_the_buffers_is_touched(after):
    """A read or write one element too far would end this process."""
    for conv, l1, l2 in CASES.values():
        machine = replace(HOST, l1=l1, l2=l2)
        packed = direct.packing(machine, conv)
        kernel = wgrad.weight_gradient(machine, conv, packed)
        sizes = [conv.n * conv.h * conv.w * conv.c, conv.n * conv.oh * conv.ow * conv.o, packed.size]
        sizes += [size // 4 for size in (kernel.workspace, 2 * kernel.scratch) if size]
        buffers = [Guarded(size, after) for size in sizes]
        bare = kernel.__class__(kernel.symbol, kernel.ir, kernel.params)
        run(bare, [buffer.array for buffer in buffers], 2)


@pytest.mark.parametrize("width", range(1, 18))
def test_strips_are_dense_copies(width):
    for pixels, step in ((8, width), (8, width + 3), (5, 20), (1, width)):
        k = KernelBuilder(HOST, "strip", ["x", "y"])
        strips.copy(k.f, k.f.arg("x"), k.f.arg("y"), pixels, width, step)
        x, y = normal((pixels - 1) * step + width), unset(pixels * width)
        run(k.finish(), [x, y], 1)
        rows = np.stack([x[p * step : p * step + width] for p in range(pixels)])
        assert np.array_equal(y.reshape(pixels, width), rows)
