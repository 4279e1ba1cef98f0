"""Packing by bricks, and back: every weight in its place, against the packed order written out in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, normal, run, unset

from twofold.backends.cpu.kernels import direct, repack
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2

CASES = [
    Conv(1, 9, 9, 32, 48, 3, 3),  # two whole blocks of AVX-512 and a half
    Conv(1, 9, 9, 64, 32, 1, 1),
    Conv(1, 9, 9, 16, 80, 5, 5),
    Conv(1, 9, 9, 32, 64, 1, 7),
    Conv(1, 9, 9, 96, 64, 3, 3, groups=2),
    Conv(1, 9, 9, 40, 64, 3, 1),  # AVX2 alone: 40 inputs are no whole vectors of 16
]


def _packed(w: np.ndarray, packed) -> np.ndarray:
    """``[group][block][tap][input][output of the block]``, as ``kernels/weights.py`` says."""
    grouped = w.reshape(packed.groups, -1, w.shape[1], packed.taps)
    if not packed.forward:
        grouped = grouped.transpose(0, 2, 1, 3)
    cuts = range(0, packed.outs, packed.block)
    return np.concatenate([g[at : at + packed.block].transpose(2, 1, 0).ravel() for g in grouped for at in cuts])


@pytest.mark.parametrize("machine", [HOST, AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("lanes", [0, 4, 8], ids=["whole", "4", "8"])
@pytest.mark.parametrize("conv", CASES, ids=str)
def test_weights_are_packed_and_unpacked_brick_by_brick(conv, lanes, machine):
    """Also in vectors shorter than the machine's, as kernels with few outputs take them."""
    if machine is AVX2 and not HOST.is_x86:
        pytest.skip("needs an x86 processor")
    w, found = normal((conv.o, conv.cg, conv.kh, conv.kw)), 0
    for forward in (True, False):
        packed = direct.packing(replace(machine, lanes=lanes or machine.lanes), conv, forward)
        if not repack.fits(packed):
            continue
        for threads in (1, 3):
            there, back = unset(packed.size), unset(w.shape)
            run(repack.pack(machine, packed), [w, there], threads)
            assert np.array_equal(there, _packed(w, packed))
            if forward:
                run(repack.unpack(machine, packed), [there, back], threads)
                assert np.array_equal(back, w)
        found += 1
    assert found or conv.cg % machine.lanes


@pytest.mark.parametrize("machine", [HOST, AVX2], ids=["host", "avx2"])
@pytest.mark.parametrize("conv", CASES, ids=str)
def test_forward_packing_is_turned_into_backward_packing(conv, machine):
    if machine is AVX2 and not HOST.is_x86:
        pytest.skip("needs an x86 processor")
    source, target = (direct.packing(machine, conv, forward) for forward in (True, False))
    assert repack.turns(source, target) == (conv.cg % machine.lanes == 0)
    if repack.turns(source, target):
        w = normal((conv.o, conv.cg, conv.kh, conv.kw))
        for threads in (1, 3):
            there = unset(target.size)
            run(repack.turn(machine, source, target), [_packed(w, source), there], threads)
            assert np.array_equal(there, _packed(w, target))


@pytest.mark.parametrize("conv", [Conv(1, 9, 9, 20, 36, 3, 3), Conv(1, 9, 9, 64, 64, 7, 7)], ids=str)
def test_orders_that_would_cut_a_vector_are_left_to_nests(conv):
    assert not any(repack.fits(direct.packing(AVX2, conv, forward)) for forward in (True, False))
