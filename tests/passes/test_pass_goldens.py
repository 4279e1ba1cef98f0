"""Passes, text in and text out: ``golden/<pass>/<case>.txt`` holds a graph, ``---``, and what the pass makes of it.

A new case is a file with the first half; ``pytest tests/passes --update-golden`` writes the second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graph_strategies import arguments
from twofold.ir import Graph, interpret
from twofold.ir.text import parse_graph, print_graph
from twofold.ir.verify import verify
from twofold.passes import optimise, specialise
from twofold.passes.common_subexpressions import common_subexpressions
from twofold.passes.dead_code import dead_code
from twofold.passes.fold_constants import fold_constants
from twofold.passes.fold_scales import fold_scales
from twofold.passes.join_slices import join_slices
from twofold.passes.simplify import simplify

PASSES = {
    "common_subexpressions": common_subexpressions,
    "dead_code": dead_code,
    "fold_constants": fold_constants,
    "fold_scales": lambda graph: dead_code(fold_scales(graph)),
    "join_slices": lambda graph: dead_code(join_slices(graph)),
    "optimise": optimise,
    "simplify": simplify,
    "specialise": lambda graph: specialise(graph, {"N": 8}),
}
CASES = sorted((Path(__file__).parent / "golden").glob("*/*.txt"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_golden(path: Path, golden):
    before = path.read_text().split("\n---\n")[0].rstrip()
    graph = verify(parse_graph(before))
    after = verify(PASSES[path.parent.name](graph))
    golden(path, f"{before}\n---\n{print_graph(after)}\n")
    assert print_graph(graph) == print_graph(parse_graph(before)), "the pass changed the graph it was given"
    if not graph.symbols() and "wrong" not in path.stem:
        same_results(graph, after)


def same_results(before: Graph, after: Graph) -> None:
    values = arguments(before)
    for a, b in zip(interpret(before, values), interpret(after, values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_every_pass_has_a_case():
    assert {p.parent.name for p in CASES} == set(PASSES)
