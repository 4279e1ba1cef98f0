"""Sums over the pixels of what a data gradient's kernel makes are gathered by that kernel: batch norm's backward reads its
gradient once less."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_check import on_cpu, on_cpu_as_it_is, verdicts
from kernel_oracles import HOST, data_gradient, error, moments, normal, run, unset

import twofold as tw
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.kernels import choose
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.nn import functional as F
from twofold.passes import optimise

PADDED = {"padding": 1}
CONVS = {  # x and w of a convolution that reads what batch norm and ReLU made, how it goes, and the kernel of its data gradient
    "1x1": ((2, 24, 9, 10), (16, 24, 1, 1), {}, "conv_dx"),
    "1x1, several blocks of inputs": ((2, 48, 6, 7), (600, 48, 1, 1), {}, "conv_dx"),
    "1x1/2": ((2, 24, 9, 10), (16, 24, 1, 1), {"stride": 2}, "conv_dx"),
    "tails": ((2, 19, 7, 5), (7, 19, 3, 3), PADDED, "conv_dx"),
    "3x3/2": ((2, 24, 9, 11), (16, 24, 3, 3), {"stride": 2, "padding": 1}, "conv_dx"),
    "Winograd, staged": ((2, 64, 14, 13), (64, 64, 3, 3), PADDED, "winograd_dx"),
    "Winograd, blocks": ((8, 64, 28, 28), (32, 64, 3, 3), PADDED, "winograd_dx"),
    "groups of 8": ((2, 32, 9, 10), (32, 8, 3, 3), {**PADDED, "groups": 4}, "conv_lanes_dx"),
    "depthwise/2": ((2, 24, 9, 10), (24, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 24}, "conv_lanes_dx"),
    "groups of 40": ((2, 80, 9, 10), (80, 40, 3, 3), {**PADDED, "groups": 2}, "conv_dx"),
}  # fmt: skip


def between(x, scale, shift, w, residual=None, **how):
    """Gradients through batch norm and ReLU between convolutions."""
    y = F.batch_norm(F.max_pool2d(x, 1), None, None, scale, shift, training=True)
    z = F.conv2d(F.relu(y if residual is None else y + residual), w, **how)
    return tw.gradients((z * z).mean(), [x, scale, shift, w])


def graph_of(function, *shapes):
    given = [tw.tensor(normal(shape, k), requires_grad=True) for k, shape in enumerate(shapes)]
    return optimise(tw.compile(function).graph(*given))


def gatherers(graph) -> list:
    """The data gradients that gather sums, as calls of kernels."""
    return [c for c in CpuProgram(graph).calls if c.ops.startswith("conv_input_grad") and c.ops.endswith("sum")]


@pytest.mark.parametrize("run", [on_cpu, on_cpu_as_it_is])
@pytest.mark.parametrize("name", CONVS)
def test_sums_of_batch_norms_gradient_come_from_the_data_gradient(name, run):
    x, w, how, kernel = CONVS[name]
    graph = graph_of(lambda *a: between(*a, **how), x, (x[1],), (x[1],), w)
    (call,) = gatherers(graph)
    assert call.kernel.symbol.rpartition("_")[0] == kernel
    assert not any(v.wrong for v in verdicts(graph, 0, run))


@pytest.mark.parametrize("joined", [False, True])
def test_the_mask_is_of_the_image_that_was_normalised(joined):
    """Which the sums read as well: so ReLU's result is not read once more, unless a residual is in it."""
    x, channels = (2, 24, 9, 10), (24,)
    shapes = [x, channels, channels, (16, 24, 1, 1), *([x] if joined else [])]
    (call,) = gatherers(graph_of(between, *shapes))
    images = [b for b in call.step.reads() if b.size == np.prod(x) and b not in call.step.writes()]
    assert len(images) == (2 if joined else 1)


def test_parts_of_a_concatenation_are_normalised_by_sums_of_a_kernel():
    def dense(x, a, b, scale, shift, w):
        first = F.conv2d(x, a)
        return between(tw.concat([first, F.conv2d(F.relu(first), b)], axis=1), scale, shift, w)

    graph = graph_of(dense, (2, 8, 6, 7), (16, 8, 1, 1), (8, 16, 1, 1), (24,), (24,), (8, 24, 1, 1))
    assert gatherers(graph)
    assert not any(v.wrong for v in verdicts(graph, 0, on_cpu))


def test_a_bias_gets_its_gradient_from_the_kernel_of_the_next_layer():
    def biased(x, a, bias, w):
        z = F.conv2d(F.relu(F.conv2d(x, a, bias)), w, padding=1)
        return tw.gradients((z * z).mean(), [a, bias, w])

    graph = graph_of(biased, (2, 5, 8, 9), (20, 5, 1, 1), (20,), (6, 20, 3, 3))
    assert gatherers(graph)
    assert not any(v.wrong for v in verdicts(graph, 0, on_cpu))


def test_a_sum_of_what_waits_for_the_kernel_itself_is_taken_after():
    """The second gradient reads the first; their product cannot be added up by the first's kernel."""

    def twice(x, w):
        first = tw.gradients(F.conv2d(x, w, padding=1).sum() + 0.5 * (F.conv2d(x, w, padding=1) ** 2).sum(), [x])[0]
        second = F.conv2d(first, w, padding=1)
        return (first * second).sum(axis=(0, 2, 3)), first, second

    graph = graph_of(twice, (2, 16, 6, 7), (16, 16, 3, 3))
    assert not any(v.wrong for v in verdicts(graph, 0, on_cpu))


@pytest.mark.parametrize("ldx", [0, 512])
@pytest.mark.parametrize("conv", [
    Conv(8, 28, 28, 64, 96, 1, 1), Conv(8, 28, 28, 64, 64, 3, 3, (2, 2), ((1, 1), (1, 1))), Conv(2, 9, 9, 24, 24, 1, 1, (2, 2)),
    Conv(4, 14, 14, 64, 48, 3, 3, pad=((1, 1), (1, 1))), Conv(2, 9, 10, 19, 19, 3, 3, (2, 2), ((1, 1), (1, 1)), groups=19),
], ids=str)  # fmt: skip
def test_a_data_gradients_sums_fit_their_parts(conv, ldx):
    wide = normal((conv.n, conv.oh, conv.ow, ldx or conv.o))
    dy, w = wide[..., : conv.o], normal((conv.o, conv.cg, conv.kh, conv.kw), 1)
    back = choose.data_gradient(HOST, conv, (ep.Statistics(conv.c),), ldx=ldx)
    weights = w
    for step in back.prepare:
        out = unset(step.size)
        run(step.kernel, [weights, out])
        weights = out
    parts = choose.parts(HOST, conv, ldx=ldx, forward=False)
    dx, stats = unset((conv.n, conv.h, conv.w, conv.c)), unset((parts + 1000, 4, conv.c))
    run(back.kernel, [wide, weights, dx, stats], 3)
    assert np.isnan(stats[parts:]).all()
    assert error(moments(stats[:parts])[1], data_gradient(conv, dy, w).var((0, 1, 2))) < 1e-4
@pytest.mark.parametrize("pooled", [False, True])
def test_concatenated_relus_are_masked_and_summed_by_the_kernel_that_makes_their_gradient(pooled):
    def fire(x, a, p, b, q, w):
        y = tw.concat([F.relu(F.conv2d(x, a, p)), F.relu(F.conv2d(x, b, q, padding=1))], axis=1)
        z = F.conv2d(F.max_pool2d(y, 3, stride=2) if pooled else y, w)
        return tw.gradients((z * z).mean(), [x, a, p, b, q, w])

    left, right = 2 * HOST.lanes + 3, 19
    shapes = [(2, 8, 13, 11), (left, 8, 1, 1), (left,), (right, 8, 3, 3), (right,), (6, left + right, 1, 1)]
    graph = graph_of(fire, *shapes)
    ops = [c.ops for c in CpuProgram(graph).calls]
    assert f"{'max_pool' if pooled else 'conv_input'}_grad, where, sum" in ops
    assert not any(o.startswith(("greater", "where")) for o in ops)
    assert not any(v.wrong for v in verdicts(graph, 0, on_cpu))


