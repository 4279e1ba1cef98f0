"""Composites are written as the standard operator they are, take any batch size, and mean the same elsewhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_tools import graph_of, operators, run, run_ort

from twofold.base.dims import symbol
from twofold.base.dtypes import float32
from twofold.io.onnx.export.model import to_model
from twofold.io.onnx.load.model import from_model
from twofold.ir import Spec
from twofold.ops import activation, clip, layers, normalization, reduction
from twofold.ops.movement import flatten

IMAGES = (6, 5, 5)
CASES = [
    # name, function of x and parameters, shape of x without the batch, shapes of the parameters, operators
    ("softmax", lambda x: activation.softmax(x, -1), (7,), [], ["Softmax"]),
    ("softmax over channels", lambda x: activation.softmax(x, 1), IMAGES, [], ["Softmax"]),
    ("log_softmax", lambda x: activation.log_softmax(x, 1), (7,), [], ["LogSoftmax"]),
    ("gelu", activation.gelu, (7,), [], ["Gelu"]),
    ("gelu tanh", lambda x: activation.gelu(x, "tanh"), (7,), [], ["Gelu"]),
    ("elu", lambda x: activation.elu(x, 0.7), (7,), [], ["Elu"]),
    ("leaky_relu", lambda x: activation.leaky_relu(x, 0.2), (7,), [], ["LeakyRelu"]),
    ("prelu", activation.prelu, IMAGES, [(6,)], ["Reshape", "PRelu"]),
    ("softplus", activation.softplus, (7,), [], ["Softplus"]),
    ("relu6", activation.relu6, (7,), [], ["Clip"]),
    ("clip", lambda x: clip(x, -0.5, 0.25), (7,), [], ["Clip"]),
    ("global average pool", lambda x: layers.adaptive_avg_pool2d(x, 1), IMAGES, [], ["GlobalAveragePool"]),
    ("mean", lambda x: reduction.mean(x, axis=1), (4, 3), [], ["ReduceMean"]),
    ("lrn", lambda x: normalization.local_response_norm(x, 5, 5e-4, 0.75, 2.0), IMAGES, [], ["LRN"]),
    (
        "layer_norm",
        lambda x, w, b: normalization.layer_norm(x, (3,), w, b),
        (4, 3),
        [(3,), (3,)],
        ["LayerNormalization"],
    ),
    (
        "batch_norm",
        lambda x, m, v, w, b: normalization.batch_norm(x, m, v, w, b),
        IMAGES,
        [(6,)] * 4,
        ["BatchNormalization"],
    ),
    ("conv", lambda x, w, b: layers.conv2d(x, w, b, 2, 1), IMAGES, [(4, 6, 3, 3), (4,)], ["Conv"]),
    ("conv without bias", lambda x, w: layers.conv2d(x, w, None, 1, 0, 1, 2), IMAGES, [(4, 3, 3, 3)], ["Conv"]),
    (
        "conv_transpose",
        lambda x, w, b: layers.conv_transpose2d(x, w, b, 2, 1, 1),
        IMAGES,
        [(6, 4, 3, 3), (4,)],
        ["ConvTranspose"],
    ),
    ("linear", layers.linear, (7,), [(3, 7), (3,)], ["Gemm"]),
    ("linear without bias", layers.linear, (7,), [(3, 7)], ["Gemm"]),
    ("flatten", lambda x: flatten(x, 1), IMAGES, [], ["Flatten"]),
    ("max_pool", lambda x: layers.max_pool2d(x, 3, 2, ceil_mode=True), (6, 8, 8), [], ["MaxPool"]),
    ("avg_pool", lambda x: layers.avg_pool2d(x, 3, 2, 1, True, False), (6, 8, 8), [], ["AveragePool"]),
    ("avg_pool pads", lambda x: layers.avg_pool2d(x, 3, 2, 1), (6, 7, 7), [], ["AveragePool"]),
]


@pytest.mark.parametrize("name, function, shape, parameters, expected", CASES, ids=[c[0] for c in CASES])
def test_composites_are_standard_operators(name, function, shape, parameters, expected):
    specs = [Spec((symbol("N"), *shape), float32), *[Spec(s, float32) for s in parameters]]
    graph = graph_of(function, *specs)
    model = to_model(graph, [])
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == expected
    loaded = from_model(model).graph
    rng = np.random.default_rng(1)
    for batch in (1, 3):
        arrays = [rng.uniform(0.2, 1.5, s).astype(np.float32) for s in [(batch, *shape), *parameters]]
        arrays[0] -= 0.6
        (want,) = run(graph, arrays, N=batch)
        np.testing.assert_allclose(run(loaded, arrays, N=batch)[0], want, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(run_ort(model, arrays)[0], want, rtol=1e-5, atol=1e-5)


def test_nearly_a_composite_is_not_raised():
    """A softmax whose maximum was taken over another axis is no Softmax; a bias along the width is no Conv bias."""
    wrong = lambda x: reduction.max(x, axis=0, keepdims=True)
    from twofold.ops.elementwise import exp

    def not_softmax(x):
        e = exp(x - wrong(x))
        return e / reduction.sum(e, axis=1, keepdims=True)

    model = to_model(graph_of(not_softmax, Spec((3, 4), float32)), [])
    assert "Softmax" not in operators(model)
    along_width = lambda x, w, b: layers.conv2d(x, w) + b
    model = to_model(
        graph_of(along_width, Spec((1, 3, 5, 5), float32), Spec((5, 3, 1, 1), float32), Spec((5,), float32)), []
    )
    assert operators(model) == ["Conv", "Add"]


def test_a_value_used_twice_is_still_written():
    """The inside of a raised composite is written too if something else reads it."""
    from twofold.ops.elementwise import exp

    def both(x):
        shifted = x - reduction.max(x, axis=1, keepdims=True)
        e = exp(shifted)
        return e / reduction.sum(e, axis=1, keepdims=True), e

    graph = graph_of(both, Spec((3, 4), float32))
    model = to_model(graph, [])
    assert sorted(operators(model)) == ["Exp", "ReduceMax", "Softmax", "Sub"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for got, want in zip(run_ort(model, [x]), run(graph, [x])):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_symbolic_sizes_are_computed_from_shapes():
    """Sizes that are arithmetic of the batch size are computed in the file: 2*N, N//2, and N itself as a number."""
    from twofold.ops.convert import dim_value
    from twofold.ops.movement import broadcast_to, concat, reshape, slice_along

    def function(x):
        n = x.shape[0]
        double = concat([x, x], 0)
        half = slice_along(x, 0, 0, n // 2)
        table = broadcast_to(reshape(reduction.sum(double), (1, 1)), (n, 2 * n))
        return double, half, reshape(table, (2 * n, n)), x * dim_value(n, float32)

    graph = graph_of(function, Spec((symbol("N"), 3), float32))
    model = to_model(graph, [])
    loaded = from_model(model).graph
    assert [str(v.spec) for v in loaded.outputs] == [str(v.spec) for v in graph.outputs]
    for batch in (2, 5):
        x = np.random.default_rng(0).normal(size=(batch, 3)).astype(np.float32)
        want = run(graph, [x], N=batch)
        for results in (run_ort(model, [x]), run(loaded, [x], N=batch)):
            for got, expected in zip(results, want, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-6)
