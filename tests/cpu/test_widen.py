"""16-bit products and pools run on the float32 kernels, between casts; memory is saved all the same."""

from __future__ import annotations

import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.lowering.steps import KernelStep
from twofold.backends.cpu.lowering.widen import widened
from twofold.backends.cpu.machine import AVX512
from twofold.ir.text import parse_graph
from twofold.nn import functional as F

GRAPH = """graph f(%x: bf16[2,3,5,5], %w: bf16[4,3,3,3], %s: f32[4]) {
  %0 = conv(%x, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : bf16[2,4,3,3]
  %1 = relu(%0) : bf16[2,4,3,3]
  %2, %3, %4 = batch_norm_train(%1, %s, %s) {eps=1e-05} : bf16[2,4,3,3], f32[4], f32[4]
  return %2, %3
}"""


def test_the_graph_has_float32_products_between_casts():
    graph = widened(parse_graph(GRAPH), AVX512)
    assert [(n.op.name, n.outputs[0].dtype.name) for n in graph.nodes] == [
        ("cast", "float32"), ("cast", "float32"), ("conv", "float32"), ("cast", "bfloat16"), ("relu", "bfloat16"),
        ("batch_norm_train", "bfloat16"),
    ]  # fmt: skip
    assert [v.dtype.name for v in graph.outputs] == ["bfloat16", "float32"]


def test_a_graph_without_16_bit_floats_is_left_as_it_is():
    graph = parse_graph(GRAPH.replace("bf16", "f32"))
    assert widened(graph, AVX512) is graph


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_training_step_runs_on_the_kernels(precision):
    """Not on plain loops, which take ten times as long."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 8))

    def slopes(x):
        loss = F.cross_entropy(model(x), tw.zeros(4, dtype=tw.int64))
        return tw.gradients(loss, list(model.parameters()))

    x = tw.zeros((4, 3, 12, 12))
    kernels = {name: _kernels(tw.compile(slopes, precision=name).graph(x)) for name in ("fp32", precision)}
    assert kernels[precision] == kernels["fp32"] > 0


def test_what_waits_for_the_backward_pass_takes_less_room():
    block = lambda: (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    model = nn.Sequential(*[layer for _ in range(12) for layer in block()], nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def slopes(x):
        loss = F.cross_entropy(model(x), tw.zeros(8, dtype=tw.int64))
        return tw.gradients(loss, list(model.parameters()))

    x = tw.zeros((8, 16, 16, 16))
    wide, narrow = (CpuProgram(tw.compile(slopes, precision=name).graph(x)).memory.temporaries for name in ("fp32", "bf16"))
    assert narrow < 0.75 * wide


def _kernels(graph):
    """How many generated kernels a program calls for products and pools."""
    products = ("conv", "matmul", "max_pool", "conv_weight_grad", "max_pool_grad")
    steps = [s for s in CpuProgram(graph).steps if isinstance(s, KernelStep)]
    return sum(any(n.op.name in products for n in s.nodes) for s in steps)
