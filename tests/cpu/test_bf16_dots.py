"""bfloat16 convolutions and products by dot products of pairs: right, the same on any team, and emitted for the machines."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from kernel_oracles import HOST
from kernel_paths import PATHS, conv, matmul

from twofold.backends.cpu import jit
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.kernels import choose, direct, gemm, wgrad
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv, halved
from twofold.backends.cpu.machine import AVX512, AVX512_BF16
from twofold.backends.cpu.program import TEAM
from twofold.base.dtypes import bfloat16
from twofold.ir import Graph
from twofold.ir.interpret import run_reference
from twofold.ir.text import parse_graph

PAD = ((1, 1), (1, 1))
DOT = "avx512bf16.dpbf16ps"
has_dots = pytest.mark.skipif(not HOST.bf16_dots, reason="this processor has no dot products of bfloat16")

# name: (graph, how many of its products and gradients are dot products of pairs)
CASES = {
    "3x3, stride 2": (PATHS["direct"][0], 3),
    "1x1": (PATHS["pointwise"][0], 3),
    "1x1, an odd number of pixels": (conv((1, 24, 7, 5), (33, 24, 1, 1)), 3),
    "1x1, inputs in blocks": (PATHS["pointwise, few places"][0], 3),
    "1x1, stride 2, rows of 8": (conv((2, 20, 15, 15), (30, 20, 1, 1), 2), 3),
    "1x1, stride 2, rows of 7": (conv((2, 20, 14, 13), (30, 20, 1, 1), 2), 3),
    "dilated": (PATHS["dilated"][0], 3),
    "stem of 3 channels": (PATHS["stem"][0], 3),
    "one channel": (conv((2, 1, 12, 12), (6, 1, 5, 5), pad=2), 3),
    "odd channels": (conv((2, 5, 9, 11), (13, 5, 3, 3), pad=1), 3),
    "column kernel": (conv((2, 8, 9, 7), (12, 8, 3, 1)), 3),
    "groups": (PATHS["groups"][0], 3),
    "groups without partners": (conv((2, 36, 7, 7), (36, 9, 3, 3), pad=1, groups=4), 0),
    "Winograd, in float32": (PATHS["winograd"][0], 0),
    "product": (PATHS["product"][0], 1),
    "product, a turned": (PATHS["product, a turned"][0], 1),
    "product, b turned": (PATHS["product, b turned"][0], 1),
    "product, both turned": (PATHS["product, both turned"][0], 1),
    "product of a row, turned": (matmul((1, 300), (300, 75), "ab"), 1),
    "few rows": (PATHS["dot products"][0], 1),
    "long sums": (PATHS["long sums"][0], 1),
    "products": (PATHS["batched product"][0], 1),
    "odd sums": (matmul((40, 301), (301, 40)), 0),
    "outer product": (PATHS["outer product"][0], 0),
}


def _narrow(text: str) -> Graph:
    return parse_graph(text.replace("f32", "bf16"))


def _given(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(tuple(map(int, v.shape))).astype(ml_dtypes.bfloat16) for v in graph.all_inputs]


def _exact(text: str, given: list[np.ndarray]) -> list[np.ndarray]:
    """The graph in float64."""
    graph = parse_graph(text.replace("f32", "f64"))
    known = dict(zip(graph.all_inputs, (a.astype(np.float64) for a in given)))
    for node in graph.nodes:
        known.update(zip(node.outputs, run_reference(node, [known[v] for v in node.inputs])))
    return [known[v] for v in graph.outputs]


def _dots(program: CpuProgram) -> int:
    return sum(DOT in call.kernel.ir for call in program.calls)


@pytest.mark.parametrize("case", CASES)
def test_results_are_sums_of_float32_rounded_once(case):
    """Within half a unit in the last of bfloat16's 8 places, and 1e-5 of the largest for the sum: on any processor."""
    text, _ = CASES[case]
    graph = _narrow(text)
    given = _given(graph)
    for got, want in zip(CpuProgram(graph)([a.copy() for a in given]), _exact(text, given), strict=True):
        assert got.dtype == ml_dtypes.bfloat16
        apart = np.abs(got.astype(np.float64) - want)
        assert (apart <= 2.0**-8 * np.abs(want) + 1e-5 * np.abs(want).max()).all()


@has_dots
@pytest.mark.parametrize("case", CASES)
def test_products_are_dot_products(case):
    text, expected = CASES[case]
    assert _dots(CpuProgram(_narrow(text))) == expected


def test_the_described_says_what_it_has():
    from twofold.backends.cpu.machine import _described

    assert HOST.bf16_dots == (" avx512_bf16 " in f"{_described()} ".replace("\n", " "))


@pytest.mark.parametrize("case", CASES)
def test_same_bits_on_any_number_of_threads(case, monkeypatch):
    graph = _narrow(CASES[case][0])
    given, found = _given(graph), []
    for threads in (1, 2, 3):
        monkeypatch.setenv("TWOFOLD_NUM_THREADS", str(threads))
        program = CpuProgram(graph)
        for segment in program.segments:
            segment.crew = TEAM
        found.append([a.tobytes() for a in program([a.copy() for a in given])])
    assert found[0] == found[1] == found[2]


def test_what_is_not_finite_stays_where_it_belongs():
    """The last pair of a row of 7 outputs has one pixel: what lies after it counts for other weights alone."""
    text = conv((1, 2, 7, 9), (4, 2, 3, 3))
    x, w, g = _given(_narrow(text))
    x[0, 0, 0, 7] = np.inf
    got = CpuProgram(_narrow(text))([x, w, g])
    for result, want in zip(got, _exact(text, [x, w, g]), strict=True):
        assert np.array_equal(np.isfinite(result.astype(np.float32)), np.isfinite(want))


def test_statistics_are_of_what_is_stored():
    """Batch norm's mean is that of the rounded results, gathered as the convolution stores them."""
    graph = parse_graph("""graph f(%x: bf16[2,6,8,8], %w: bf16[10,6,1,1], %s: f32[10]) {
      %0 = conv(%x, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : bf16[2,10,8,8]
      %1, %2, %3 = batch_norm_train(%0, %s, %s) {eps=1e-05} : bf16[2,10,8,8], f32[10], f32[10]
      return %0, %2, %3
    }""")
    x, w = _given(graph)[:2]
    y, mean, variance = CpuProgram(graph)([x, w, np.ones(10, np.float32)])
    stored = y.astype(np.float64)
    np.testing.assert_allclose(mean, stored.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, stored.var((0, 2, 3)), rtol=1e-5)


CONVS = [
    Conv(1, 14, 14, 64, 96, 3, 3, pad=PAD),
    Conv(1, 14, 14, 512, 96, 1, 1),
    Conv(1, 15, 15, 6, 40, 3, 3, (2, 2), PAD),
    Conv(1, 9, 9, 24, 24, 3, 3, pad=PAD, groups=2),
]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_kernels_are_emitted_for_machines_that_multiply_pairs(conv):
    """Everywhere: the object comes out, its products are VDPBF16PS on whole registers, and none of them is spilled."""
    machine = AVX512_BF16
    epilogue = (ep.Rounded(bfloat16), ep.Relu(), ep.Stored(bfloat16))
    there, back = halved(conv), halved(conv, forward=False)
    kernels = [
        direct.forward(machine, there, direct.packing(machine, there, pairs=True), epilogue),
        direct.data_gradient(machine, back, direct.packing(machine, back, False, pairs=True), epilogue),
        wgrad.weight_gradient(machine, conv, direct.packing(machine, conv), dtype=bfloat16),
    ]
    for kernel in kernels:
        _check_assembly(kernel.ir)


@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("rows", [4, 90])
def test_products_are_emitted_for_machines_that_multiply_pairs(rows, turned):
    shape = gemm.Matmul(rows, 128, 80, transpose_a="a" in turned, transpose_b="b" in turned)
    epilogue = (ep.Rounded(bfloat16), ep.Stored(bfloat16))
    _check_assembly(gemm.matmul(AVX512_BF16, shape, epilogue, pairs=True).ir)


def _check_assembly(ir: str) -> None:
    assert jit.compile_ir(ir, AVX512_BF16).startswith(b"\x7fELF")
    lines = jit.assembly(ir, AVX512_BF16).splitlines()
    products = [line for line in lines if "dpbf16ps" in line]
    assert products and all("%zmm" in line for line in products)
    assert not [line for line in lines if "vfmadd" in line or ("Spill" in line and "mm" in line)]


def test_other_machines_compute_in_float32():
    assert not choose.takes_bf16(AVX512, CONVS[0])
    assert choose.takes_bf16(AVX512_BF16, CONVS[0])
    assert not choose.takes_bf16(AVX512_BF16, replace(CONVS[0], c=66, o=66, groups=22)), "groups of 3 have no pairs"
