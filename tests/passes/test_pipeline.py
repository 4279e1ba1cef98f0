"""The pipeline: it keeps the meaning of any graph, settles, verifies after each pass, and shows what each pass did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from graph_strategies import arguments, graphs
from twofold.base.errors import GraphError, ShapeError
from twofold.ir import Graph, interpret
from twofold.ir.rewrite import structurally_equal
from twofold.ir.text import parse_graph, print_graph
from twofold.ir.verify import verify
from twofold.passes import PIPELINE, optimise, pipeline, specialise

TEXT = """graph f(%x: f32[2]) {
  %0 = constant() {value=f32[]{0.0}} : f32[]
  %1 = add(%x, %0) : f32[2]
  %2 = exp(%1) : f32[2]
  return %2
}"""


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_meaning_is_kept(graph: Graph):
    text = print_graph(graph)
    after = verify(optimise(graph))
    assert print_graph(graph) == text
    for a, b in zip(interpret(graph, arguments(graph)), interpret(after, arguments(graph)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert a.dtype == b.dtype


@settings(max_examples=30, deadline=None)
@given(graphs())
def test_a_second_run_changes_little(graph: Graph):
    once = optimise(graph)
    twice = optimise(once)
    assert len(twice.nodes) <= len(once.nodes)
    assert structurally_equal(twice, optimise(twice)) or len(optimise(twice).nodes) <= len(twice.nodes)


def test_dump_is_told_of_every_pass():
    told: list[str] = []
    optimise(parse_graph(TEXT), dump=lambda name, graph: told.append(name))
    assert told == ["recorded", *(p.__name__ for p in PIPELINE)]


def test_debug_prints_the_graphs(monkeypatch, capsys):
    monkeypatch.setenv("TWOFOLD_DEBUG", "3")
    optimise(parse_graph(TEXT))
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("graph f(") == len(PIPELINE) + 1
    assert "# simplify\ngraph f(%x: f32[2]) {" in printed.err


def test_a_pass_that_breaks_the_graph_is_named(monkeypatch):
    def careless(graph: Graph) -> Graph:
        return Graph(graph.name, graph.inputs, graph.nodes[1:], graph.outputs)

    monkeypatch.setattr(pipeline, "PIPELINE", (careless,))
    with pytest.raises(GraphError, match=r"^after careless: graph 'f': node 0, add.*used before it is defined"):
        optimise(parse_graph(TEXT))


def test_specialise_wants_every_size():
    graph = parse_graph("graph f(%x: f32[N,M]) { return %x }")
    with pytest.raises(ShapeError, match="no size given for M; got sizes for N"):
        specialise(graph, {"N": 2})
