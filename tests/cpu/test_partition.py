"""Units of several loops shared as one list: every unit once, and evenly."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_oracles import HOST

from twofold.backends.cpu import team
from twofold.backends.cpu.kernels import direct, partition
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.llvm import const
from twofold.backends.cpu.program import KernelBuilder, ProgramBuilder, Ref

LOOPS = [[(1, 28), (1, 14)], [(1, 5), (1, 5), (1, 5)], [(7, 3), (2, 1), (1, 40)], [(64, 8)], [(2, 1)]]


def times_done(loops, threads):
    """How often every unit is done, by threads in turn."""
    k = KernelBuilder(HOST, "count", ["out"])
    f, base = k.f, 0
    for (units, _), part in zip(loops, partition.parts(f, loops)):
        with f.loop(*part) as unit:
            place = f.gep(f.arg("out"), f.add(f.mul(f.arg("tid"), 128), f.add(unit.index, base)))
            f.store(f.fadd(f.load("float", place), const("float", 1.0)), place)
        base += units
    builder = ProgramBuilder(HOST)
    builder.call(k.finish(), [Ref(0)])
    out = np.zeros((threads, 128), np.float32)
    with team.get(threads).whole():
        builder.finish().run([out.ctypes.data], threads)
    return out[:, :base]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("loops", LOOPS, ids=str)
def test_every_unit_is_done_once_and_idle_counts_what_the_code_does(loops, threads):
    done = times_done(loops, threads)
    assert np.array_equal(done.sum(0), np.ones(done.shape[1]))
    works = np.repeat([work for _, work in loops], [units for units, _ in loops])
    load = (done * works).sum(1)
    assert partition.idle(loops, threads) == pytest.approx(load.max() * threads / works.sum() - 1)


def test_odd_units_of_loops_fall_to_different_threads():
    done = times_done([(1, 2), (1, 1), (1, 2), (1, 1)], 2)
    assert done.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_phases_of_a_strided_gradient_are_shared_by_their_taps(monkeypatch):
    """Of 3x3 taps with stride 2 the four phases have 1, 2, 2 and 4: counted as equal, the last of two threads did twice the
    products of the first."""
    seen = []
    shared = partition.parts
    monkeypatch.setattr(partition, "parts", lambda f, loops: [seen.extend(loops), shared(f, loops)][1])
    conv = Conv(8, 28, 28, 256, 256, 3, 3, (2, 2), ((1, 1), (1, 1)))
    direct.data_gradient(HOST, conv, direct.packing(HOST, conv, forward=False))
    work = [units * each for units, each in seen]
    assert 2 * work[0] > work[1] == work[2] > 1.5 * work[0]
    assert 2 * work[1] > work[3] > 1.5 * work[1]
