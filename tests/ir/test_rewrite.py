"""Helpers that make graphs from graphs: rebuild, specialise, inline, equality."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from graph_strategies import arguments, graphs
from twofold.base.dims import symbol
from twofold.base.errors import GraphError, ShapeError
from twofold.ir import Builder, Graph, interpret, recording
from twofold.ir.rewrite import fingerprint, inline, rebuild, specialise, structurally_equal
from twofold.ir.text import parse_graph, print_graph
from twofold.ir.verify import verify

SYMBOLIC = """
graph f(%x: f32[N,4], %p: bool[]) {
  %0 = dim_size() {dim=N, dtype=f32} : f32[]
  %1 = reshape(%x) {shape=(<2*N>, 2)} : f32[2*N,2]  # flatten
  %2 = cond(%p, %1) {
    true = graph(%a: f32[2*N,2]) { return %a },
    false = graph(%a: f32[2*N,2]) { %0 = full() {shape=(<2*N>, 2), fill=0.5, dtype=f32} : f32[2*N,2]  return %0 }
  } : f32[2*N,2]
  %3 = multiply(%2, %0) : f32[2*N,2]
  return %3
}
"""


def test_specialise_gives_every_value_a_size():
    graph = specialise(parse_graph(SYMBOLIC), {"N": 3})
    verify(graph)
    assert "N" not in print_graph(graph).replace("N = ", "") and graph.outputs[0].shape == (6, 2)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for p, expected in ((True, x.reshape(6, 2) * 3), (False, np.full((6, 2), 1.5))):
        np.testing.assert_array_equal(interpret(graph, [x, np.array(p)])[0], expected)


def test_specialise_may_leave_symbols_or_rename_them():
    graph = specialise(parse_graph(SYMBOLIC), {"N": symbol("B") * 2})
    assert verify(graph).outputs[0].shape == (symbol("B") * 4, 2) and graph.symbols() == {"B"}


def test_specialise_does_not_change_its_graph():
    graph = parse_graph(SYMBOLIC)
    before = print_graph(graph)
    specialise(graph, {"N": 3})
    assert print_graph(graph) == before


def test_specialise_names_the_layer_that_does_not_fit():
    graph = parse_graph("""graph f(%x: f32[N,4], %y: f32[K]) {
      %0 = slice(%x) {starts=(K, 0), stops=(N, 4), steps=(1, 1)} : f32[N-K,4]  # head
      return %0
    }""")
    with pytest.raises(ShapeError, match=r"^head: slice: 5:2 lies outside"):
        specialise(graph, {"N": 2, "K": 5})


@settings(max_examples=30, deadline=None)
@given(graphs())
def test_a_copy_is_equal_and_separate(graph: Graph):
    copied = verify(rebuild(graph, lambda new, node, inputs: None))
    assert structurally_equal(graph, copied) and fingerprint(graph) == fingerprint(copied)
    assert not set(graph.nodes) & set(copied.nodes)


@settings(max_examples=30, deadline=None)
@given(graphs())
def test_inlining_computes_the_same(graph: Graph):
    builder = Builder("outer")
    values = [builder.input(v.spec) for v in graph.inputs]
    with recording(builder):
        outer = verify(builder.finish(inline(graph, values)))
    for a, b in zip(interpret(graph, arguments(graph)), interpret(outer, arguments(graph)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inline_wants_every_input():
    graph = parse_graph("graph f(%x: f32[2]) { return %x }")
    with pytest.raises(GraphError, match="takes 1 values; got 0"):
        inline(graph, [])


PAIRS = [
    ("full() {shape=(2,), fill=0.0, dtype=f32}", "full() {shape=(2,), fill=-0.0, dtype=f32}", False),
    ("full() {shape=(2,), fill=nan, dtype=f32}", "full() {shape=(2,), fill=nan, dtype=f32}", True),
    ("full() {shape=(2,), fill=1.0, dtype=f32}", "full() {shape=(2,), fill=1, dtype=f32}", False),
    ("constant() {value=f32[2]{1.0, 2.0}}", "constant() {value=f32[2]{1.0, 2.0}}", True),
    ("constant() {value=f32[2]{1.0, 2.0}}", "constant() {value=f32[2]{1.0, 2.5}}", False),
]


@pytest.mark.parametrize(("a", "b", "equal"), PAIRS)
def test_equality_is_of_steps(a, b, equal):
    first = parse_graph(f"graph one(%x: f32[2]) {{ %0 = {a} : f32[2]  # layer.a\n  return %0 }}")
    second = parse_graph(f"graph two(%y: f32[2]) {{ %q = {b} : f32[2]  return %q }}")
    assert structurally_equal(first, second) is equal
    assert (fingerprint(first) == fingerprint(second)) is equal
