"""Data gradients of convolutions with few inputs, taps and inputs in the lanes, against NumPy in float64."""

from __future__ import annotations

import pytest
from kernel_oracles import HOST, data_gradient, error, normal, run, unset

from twofold.backends.cpu.kernels import choose, direct, fold, weights
from twofold.backends.cpu.kernels.epilogue import Relu
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2

MACHINES = [HOST, AVX2] if HOST.is_x86 else [HOST]
CASES = [
    Conv(4, 14, 14, 6, 16, 5, 5),
    Conv(2, 9, 6, 3, 7, 3, 3, pad=((1, 1), (1, 1))),
    Conv(1, 7, 8, 1, 5, 2, 4, pad=((0, 1), (2, 0))),
    Conv(3, 5, 9, 2, 33, 5, 7, pad=((2, 2), (3, 3))),
    Conv(1, 3, 12, 5, 4, 3, 8),
    Conv(1, 4, 5, 3, 2, 2, 3, pad=((3, 0), (0, 4))),
]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m.lanes} lanes")
@pytest.mark.parametrize("conv", CASES, ids=str)
def test_data_gradients(conv, machine):
    if not fold.fits(machine, conv):
        assert machine is not HOST or machine.lanes < 16
        return
    packed = fold.packing(machine, conv)
    dy, w = normal((conv.n, conv.oh, conv.ow, conv.o + 3)), normal((conv.o, conv.c, conv.kh, conv.kw), 1)
    plain, forward = weights.plain(conv), direct.packing(machine, conv)
    kept = unset(forward.size)
    run(weights.repack(machine, plain, forward), [w, kept])
    for base, source in ((plain, w), (forward, kept)):
        u, found = unset(packed.size), []
        run(weights.repack(machine, fold.Unfolded(base, conv), packed), [source, u])
        for threads in (1, 3):
            found.append(unset((conv.n, conv.h, conv.w, conv.c)))
            run(fold.data_gradient(machine, conv, conv.o + 3), [dy, u, found[-1]], threads)
        assert error(found[0], data_gradient(conv, dy[..., : conv.o], w)) < 1e-6
        assert found[0].tobytes() == found[1].tobytes()


def test_what_it_takes():
    conv = Conv(2, 12, 12, 3, 8, 5, 5)
    assert fold.fits(HOST, conv) == (HOST.lanes == 16) == (choose.data_gradient(HOST, conv).algorithm == "fold")
    assert choose.data_gradient(HOST, conv, (Relu(),)).algorithm != "fold"
    for other in (Conv(2, 12, 12, 3, 8, 5, 5, (2, 2)), Conv(2, 12, 12, 6, 8, 5, 5, groups=2), Conv(2, 12, 12, 16, 8, 5, 5)):
        assert not fold.fits(HOST, other)
    assert not fold.fits(HOST, conv, 4), "a slice of a concatenation"
    assert not fold.fits(HOST, Conv(1, 5, 60, 3, 8, 5, 5)), "a row does not fit the registers"
