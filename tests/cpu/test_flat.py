"""Images laid flat for a linear layer: read as they lie, with the weights in that order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu.lowering.flat import laid_flat
from twofold.backends.cpu.machine import host
from twofold.ir.interpret import interpret
from twofold.ir.text import parse_graph

RNG = np.random.default_rng(3)
TEXT = """graph f(%x: f32[2,4,6,6]) {{
  state %w: f32[5,36]
  %0 = max_pool(%x) {{window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=false}} : f32[2,4,3,3]
  %1 = reshape(%0) {{shape=(2, 36)}} : f32[2,36]
  %2 = permute_dims(%w) {{axes=(1, 0)}} : f32[36,5]
  %3 = matmul(%1, %2) : f32[2,5]
  {more}
}}"""
PLAIN = "return %3"


def test_it_is_the_same_product():
    graph = parse_graph(TEXT.format(more=PLAIN))
    found = laid_flat(graph, host())
    assert [node.op.name for node in found.nodes] == [
        "max_pool", "reshape", "permute_dims", "reshape", "reshape", "permute_dims", "reshape", "permute_dims", "matmul",
    ]  # fmt: skip
    given = [RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 6, 6), (5, 36))]
    np.testing.assert_allclose(interpret(found, given)[0], interpret(graph, given)[0], atol=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        "return %3, %1",  # the image is needed in its own order
        "%4 = add(%2, %2) : f32[36,5]\n  return %3, %4",
        "%4 = add(%w, %w) : f32[5,36]\n  next %w = %4\n  return %3",  # a step that changes the weights
    ],
)
def test_it_stays_where_others_read_it_or_write_the_weights(more):
    graph = parse_graph(TEXT.format(more=more))
    assert laid_flat(graph, host()) is graph


def test_large_weights_are_not_kept_twice():
    graph = parse_graph(TEXT.format(more=PLAIN))
    assert laid_flat(graph, replace(host(), l2=5 * 36 * 4 - 1)) is graph


def test_new_weights_are_turned_anew():
    with tw.device("cpu"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 5))
        model.eval()
        x = tw.tensor(RNG.standard_normal((2, 3, 8, 8)).astype(np.float32))

        @tw.compile
        def infer(x):
            with tw.no_grad():
                return model(x)

        for _ in range(2):
            for _ in range(3):
                with tw.no_grad():
                    np.testing.assert_allclose(infer(x).numpy(), model(x).numpy(), rtol=1e-4, atol=1e-5)
            weight = list(model.parameters())[-2]
            weight.assign(weight * 2.0 + 1.0)
        assert "\n  reshape_" not in infer.report()
