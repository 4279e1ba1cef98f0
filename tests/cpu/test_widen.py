"""16-bit products run on the float32 kernels, between casts, and pools read and write 16 bits; memory is saved all the same."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.lowering.lower import lower
from twofold.backends.cpu.lowering.steps import KernelStep
from twofold.backends.cpu.lowering.widen import widened
from twofold.backends.cpu.machine import AVX512, AVX512_BF16
from twofold.ir.interpret import run_reference
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


POOL = """graph f(%x: f32[2,{c},9,11], %g: f32[2,{c},{o}]) {{
  %0 = max_pool(%x) {{{a}, dilation=(1, 1)}} : f32[2,{c},{o}]
  %1 = avg_pool(%x) {{{a}, include_pad=false}} : f32[2,{c},{o}]
  %2 = max_pool_grad(%x, %g) {{{a}, dilation=(1, 1)}} : f32[2,{c},9,11]
  %3 = avg_pool_grad(%g) {{{a}, include_pad=false, input_shape=(9, 11)}} : f32[2,{c},9,11]
  return %0, %1, %2, %3
}}"""
APART = "window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)), ceil_mode=false"
OVERLAPPING = "window=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), ceil_mode=false"
# a pool, and how many of its casts are left: gradients of windows that overlap may be added up in memory, in float32
POOLS = {
    "apart": ({"c": 37, "a": APART, "o": "4,5"}, 0),
    "overlapping": ({"c": 37, "a": OVERLAPPING, "o": "5,6"}, 2),
    "overlapping, few channels": ({"c": 5, "a": OVERLAPPING, "o": "5,6"}, 5),
}


@pytest.mark.parametrize("short, dtype", [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
@pytest.mark.parametrize("case", POOLS)
def test_pools_read_and_write_16_bits(case, short, dtype):
    shape, casts = POOLS[case]
    graph, exact = (parse_graph(POOL.format(**shape).replace("f32", d)) for d in (short, "f64"))
    assert sum(n.op.name == "cast" for n in widened(graph, AVX512).nodes) == casts
    rng = np.random.default_rng(0)
    given = [(rng.integers(-9, 9, tuple(map(int, v.shape))) / 7).astype(dtype) for v in graph.all_inputs]  # with ties
    known = dict(zip(exact.all_inputs, (a.astype(np.float64) for a in given)))
    for node in exact.nodes:
        known.update(zip(node.outputs, run_reference(node, [known[v] for v in node.inputs])))
    for got, value in zip(CpuProgram(graph)([a.copy() for a in given]), exact.outputs, strict=True):
        assert got.dtype == dtype
        want = known[value]
        step = 2.0**-8 if short == "bf16" else 2.0**-11
        assert (abs(got.astype(np.float64) - want) <= step * abs(want) + 1e-7).all()


def test_the_float32_form_of_16_bits_is_not_stored():
    """Though several read it, and though a kernel that is yet to write the 16 bits waits."""
    graph = parse_graph("""graph f(%x: bf16[2,16,9,9], %w: bf16[8,16,3,3], %s: f32[8,1,1]) {
      %0 = conv(%x, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : bf16[2,8,7,7]
      %1 = cast(%0) {dtype=f32} : f32[2,8,7,7]
      %2 = sum(%1) {axes=(0, 2, 3), keepdims=false} : f32[8]
      %3 = multiply(%1, %1) : f32[2,8,7,7]
      %4 = sum(%3) {axes=(0, 2, 3), keepdims=false} : f32[8]
      return %0, %2, %4
    }""")
    assert "cast" not in {note.split()[0] for note in lower(graph, AVX512_BF16, None).notes}


def test_transposed_weights_are_cast_in_the_order_they_lie_in():
    graph = parse_graph("""graph f(%x: bf16[16,64], %w: f32[48,64]) {
      %0 = permute_dims(%w) {axes=(1, 0)} : f32[64,48]
      %1 = cast(%0) {dtype=bf16} : bf16[64,48]
      %2 = matmul(%x, %1) : bf16[16,48]
      return %2
    }""")
    (product,) = graph.outputs
    cast = product.producer.inputs[1]
    assert lower(graph, AVX512_BF16, None).values[cast].order == (1, 0)


def _kernels(graph):
    """How many generated kernels a program calls for products and pools."""
    products = ("conv", "matmul", "max_pool", "conv_weight_grad", "max_pool_grad")
    steps = [s for s in CpuProgram(graph).steps if isinstance(s, KernelStep)]
    return sum(any(n.op.name in products for n in s.nodes) for s in steps)
