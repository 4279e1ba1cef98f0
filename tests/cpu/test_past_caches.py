"""What the caches do not keep is written past them, in whole lines, wherever these begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, normal, run, unset

from twofold.backends.cpu.emit import nest_kernel
from twofold.backends.cpu.loops import Buffer, Nest, Store, Var, const, load, op, var
from twofold.base.dtypes import float32

SMALL = replace(HOST, l3=0)


@pytest.mark.parametrize("begin", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize(("columns", "pitch", "offset"), [(64, 64, 0), (48, 96, 32), (40, 40, 0), (50, 64, 0), (64, 64, 3)])
def test_results(columns, pitch, offset, begin):
    rows = 37
    x, y = (Buffer(float32, rows * pitch + offset, name) for name in "xy")
    i, j = Var(rows, "i"), Var(columns, "j")
    doubled = op("multiply", float32, load(x, var(i) * pitch + var(j)), const(float32, 2.0))
    kernel, buffers = nest_kernel(SMALL, Nest([i, j], [Store(y, var(i) * pitch + var(j) + offset, doubled)]))
    assert buffers == [y, x]
    assert ("!nontemporal" in kernel.ir) == (HOST.lanes == 16 and pitch % 16 == offset % 16 == 0)
    given, out = normal((y.size,)), unset((y.size + begin,))[begin:]
    run(kernel, [out, given], 3)
    rows_of = lambda a, first: np.lib.stride_tricks.as_strided(a[first:], (rows, columns), (4 * pitch, 4))
    np.testing.assert_array_equal(rows_of(out, offset), 2 * rows_of(given, 0))


def test_what_is_read_there_or_kept_by_the_caches_is_not():
    i = Var(1 << 10, "i")
    x, y = (Buffer(float32, 1 << 10, name) for name in "xy")
    in_place = Nest([i], [Store(x, var(i), op("add", float32, load(x, var(i)), load(y, var(i))))])
    copied = Nest([i], [Store(x, var(i), load(y, var(i)))])
    assert "!nontemporal" not in nest_kernel(SMALL, in_place)[0].ir + nest_kernel(HOST, copied)[0].ir
