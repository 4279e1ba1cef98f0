"""The choice of convolution kernels, through the entries that the lowering uses; and the kernels for small groups."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_oracles import HOST, data_gradient, error, forward, moments, normal, run, unset, weight_gradient

import twofold
from twofold import nn
from twofold.backends.cpu.kernels import choose, weights, winograd
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import AVX2, AVX512, NEON
from twofold.base.errors import ArgumentError

ONE = ((1, 1), (1, 1))
CASES = [
    Conv(2, 9, 10, 16, 16, 3, 3, pad=ONE, groups=16),
    Conv(2, 9, 10, 19, 19, 3, 3, (2, 2), ONE, groups=19),
    Conv(1, 9, 18, 24, 24, 3, 3, pad=ONE, groups=6),
    Conv(1, 9, 18, 20, 20, 3, 3, (2, 2), ONE, groups=5),
    Conv(1, 7, 8, 12, 12, 5, 5, (1, 2), ((2, 2), (2, 1)), (2, 1), 6),
    Conv(2, 9, 17, 24, 24, 3, 3, (1, 2), ONE, groups=3),
    Conv(1, 7, 13, 16, 16, 5, 5, (1, 1), ((2, 2), (2, 1)), (2, 1), 2),
    Conv(1, 9, 9, 32, 32, 3, 3, pad=ONE, groups=2),
    Conv(4, 16, 16, 64, 64, 3, 3, pad=ONE),
    Conv(1, 12, 12, 3, 20, 5, 5, (2, 2)),
    Conv(1, 13, 13, 64, 256, 3, 3, pad=ONE),
    Conv(2, 12, 11, 1, 6, 5, 5),
    Conv(2, 9, 10, 7, 24, 3, 3, (2, 2), ONE),
    Conv(2, 27, 27, 32, 48, 5, 5, pad=((2, 2), (2, 2))),
]


@pytest.mark.parametrize("ldx", [0, 512, 2048])
@pytest.mark.parametrize(
    "conv", [Conv(8, 28, 28, 64, 96, 1, 1), Conv(8, 28, 28, 64, 64, 3, 3, (2, 2), ONE), Conv(4, 14, 14, 64, 48, 3, 3, pad=ONE)], ids=str
)  # fmt: skip
def test_statistics_of_a_convolution_of_some_channels_fit_their_parts(conv, ldx):
    wide = normal((conv.n, conv.h, conv.w, ldx or conv.c))
    x, w = wide[..., : conv.c], normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    ahead = choose.forward(HOST, conv, (ep.Statistics(conv.o),), ldx=ldx)
    parts = choose.parts(HOST, conv, ldx=ldx)
    y, stats = unset((conv.n, conv.oh, conv.ow, conv.o)), unset((parts + 1000, 4, conv.o))
    run(ahead.kernel, [wide, prepared(ahead, w), y, stats], 3)
    assert np.isnan(stats[parts:]).all()
    assert error(moments(stats[:parts])[1], forward(conv, x, w).var((0, 1, 2))) < 1e-4


def test_few_outputs_take_half_of_a_wide_vector():
    few, many = Conv(1, 28, 28, 20, 6, 5, 5), Conv(1, 28, 28, 6, 20, 5, 5)
    assert [choose.packed_weights(m, few).lanes for m in (AVX512, AVX2, NEON)] == [8, 8, 4]
    assert [choose.packed_weights(m, many).lanes for m in (AVX512, AVX2, NEON)] == [16, 8, 4]
    assert choose.data_gradient(AVX512, many).weights.lanes == 8
    assert choose.weight_gradient(AVX512, few).weights == choose.packed_weights(AVX512, few)


def prepared(choice, w):
    for step in choice.prepare:
        out = unset(step.size)
        run(step.kernel, [w, out])
        w = out
    return w


def in_users_order(conv, data, packed):
    out = unset((conv.o, conv.cg, conv.kh, conv.kw))
    run(weights.repack(HOST, packed, choose.plain_weights(HOST, conv)), [data, out])
    return out


@pytest.mark.parametrize("conv", CASES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_direction_from_plain_weights(conv, threads):
    x, w = normal((conv.n, conv.h, conv.w, conv.c)), normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    dy, bias = normal((conv.n, conv.oh, conv.ow, conv.o), 2), normal(conv.o, 3)
    ahead = choose.forward(HOST, conv, (ep.Bias(), ep.Statistics(conv.o)))
    y, stats = unset(dy.shape), unset((choose.parts(HOST, conv), 4, conv.o))
    run(ahead.kernel, [x, prepared(ahead, w), y, bias, stats], threads)
    expected = forward(conv, x, w) + bias
    bound = 2e-5 if ahead.algorithm == "winograd" else 2e-6
    assert error(y, expected) < bound
    assert error(moments(stats)[1], expected.var((0, 1, 2))) < 1e-4
    back, dx = choose.data_gradient(HOST, conv), unset(x.shape)
    run(back.kernel, [dy, prepared(back, w), dx], threads)
    assert error(dx, data_gradient(conv, dy, w)) < bound
    across = choose.weight_gradient(HOST, conv)
    dw = unset(across.weights.size)
    run(across.kernel, [x, dy, dw], threads)
    assert error(in_users_order(conv, dw, across.weights), weight_gradient(conv, x, dy)) < bound


@pytest.mark.parametrize("conv", [CASES[2], CASES[6]], ids=str)
def test_parameters_may_stay_packed(conv):
    """Forward needs no repacking then, and the data gradient repacks from the packed order."""
    packed, w = choose.packed_weights(HOST, conv), normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    kept, dy = unset(packed.size), normal((conv.n, conv.oh, conv.ow, conv.o), 2)
    run(weights.repack(HOST, choose.plain_weights(HOST, conv), packed), [w, kept])
    assert choose.weight_gradient(HOST, conv).weights == packed
    assert [p.size for p in choose.forward(HOST, conv, source=packed).prepare if "repack" in p.kernel.symbol] == []
    back, dx = choose.data_gradient(HOST, conv, source=packed), unset((conv.n, conv.h, conv.w, conv.c))
    run(back.kernel, [dy, prepared(back, kept), dx])
    assert error(dx, data_gradient(conv, dy, w)) < 2e-5


def test_winograd_is_chosen_where_it_pays_and_can_be_refused(monkeypatch):
    body = Conv(8, 56, 56, 64, 64, 3, 3, pad=ONE)
    for machine in (AVX2, AVX512, NEON):
        assert choose.winograd_scheme(machine, body, False)
        assert choose.winograd_scheme(machine, Conv(8, 14, 14, 256, 256, 3, 3, pad=ONE), False)
        assert not choose.winograd_scheme(machine, Conv(8, 224, 224, 3, 64, 3, 3, pad=ONE), False)
        assert not choose.winograd_scheme(machine, Conv(8, 56, 56, 64, 64, 3, 3, (2, 2), ONE), False)
    few = Conv(1, 7, 7, 512, 512, 3, 3, pad=ONE)
    assert choose.winograd_scheme(AVX2, few, True) == winograd.F2, "the weights of F(4x4) would take longer to read"
    assert choose.winograd_scheme(AVX2, few, False) is None, "and both longer to transform"
    monkeypatch.setenv("TWOFOLD_CONV", "direct")
    assert choose.forward(HOST, body).algorithm == "direct"
    monkeypatch.setenv("TWOFOLD_CONV", "fft")
    with pytest.raises(ArgumentError, match="'fft'; expected 'auto' or 'direct'"):
        choose.forward(HOST, body)


def test_refusing_winograd_between_programs(monkeypatch):
    """The first convolution's epilogue gathers the batch's moments, in as many parts as its kernel has."""
    twofold.random.seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    norm = nn.BatchNorm2d(64)
    x = twofold.tensor(normal((2, 64, 28, 28)))
    outputs = []
    for algorithms in ("auto", "direct", "auto"):
        monkeypatch.setenv("TWOFOLD_CONV", algorithms)
        outputs.append(twofold.compile(lambda x: norm(conv(x)))(x).numpy())
    y = forward(Conv(2, 28, 28, 64, 64, 3, 3, pad=ONE), x.numpy().transpose(0, 2, 3, 1), conv.weight.numpy())
    right = ((y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + norm.eps)).transpose(0, 3, 1, 2)
    assert [error(y, right) < bound for y, bound in zip(outputs, (2e-5, 2e-6, 2e-5))] == [True] * 3
    assert outputs[0].tobytes() == outputs[2].tobytes() != outputs[1].tobytes()


def in_slice(array, before: int = 3, after: int = 2):
    """The array as a slice of channels of a wider buffer, the distance of its pixels, and a check of what surrounds it."""
    wide = np.full((*array.shape[:-1], before + array.shape[-1] + after), 7, np.float32)
    view = wide[..., before : before + array.shape[-1]]
    view[...] = array

    def untouched() -> bool:
        return bool((wide[..., :before] == 7).all() and (wide[..., before + array.shape[-1] :] == 7).all())

    return view, wide.shape[-1], untouched


SLICED = [CASES[2], CASES[5], CASES[6], CASES[7], Conv(1, 6, 9, 20, 18, 1, 1), Conv(1, 7, 7, 9, 8, 3, 3, (2, 2), ONE)]


@pytest.mark.parametrize("conv", SLICED, ids=str)
def test_slices_of_wider_buffers(conv):
    """Concatenation without copies: every kernel reads and writes channels of a wider activation."""
    w = normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    x, ldx, x_kept = in_slice(normal((conv.n, conv.h, conv.w, conv.c)))
    dy, ldg, _ = in_slice(normal((conv.n, conv.oh, conv.ow, conv.o), 2))
    y, ldy, y_kept = in_slice(unset(dy.shape))
    ahead = choose.forward(HOST, conv, ldx=ldx, ldy=ldy)
    run(ahead.kernel, [x, prepared(ahead, w), y])
    bound = 2e-5 if ahead.algorithm == "winograd" else 2e-6
    assert error(y, forward(conv, x, w)) < bound and y_kept()
    across = choose.weight_gradient(HOST, conv, ldx=ldx, ldy=ldg)
    dw = unset(across.weights.size)
    run(across.kernel, [x, dy, dw])
    assert error(in_users_order(conv, dw, across.weights), weight_gradient(conv, x, dy)) < bound
    back = choose.data_gradient(HOST, conv, ldx=ldg, ldy=ldx)
    x[...] = np.nan
    run(back.kernel, [dy, prepared(back, w), x])
    assert error(x, data_gradient(conv, dy, w)) < bound and x_kept()
