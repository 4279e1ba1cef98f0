"""Running a program beside the reference and naming the first node that differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from twofold.backends import Device, Program, device
from twofold.base.errors import VerificationError
from twofold.ir import Graph, Node, Value
from twofold.ir.interpret import interpret, observing, run_reference
from twofold.static.rounding import TOLERANCE, allowances

Arrays = list[np.ndarray]


def _furthest(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; infinite where NaNs or infinities do not match."""
    if got.shape != expected.shape:
        return float("inf")
    a, b = got.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    a, b = np.where(same, 0.0, a), np.where(same, 0.0, b)
    finite = np.isfinite(a) & np.isfinite(b)
    return float(np.max(np.abs(a - b), initial=0.0)) if finite.all() else float("inf")


def _magnitude(expected: np.ndarray) -> float:
    wide = expected.astype(np.float64)
    return max(float(np.max(np.abs(np.where(np.isfinite(wide), wide, 0.0)), initial=0.0)), 1e-6)


def check_against_reference(graph: Graph, program: Program, buffers: Sequence[Any], where: Device) -> list[Any]:
    """The program's results, after comparing them with the reference's."""
    backend = where.backend
    inputs = [np.array(backend.get(b)) for b in buffers]
    results = program(list(buffers))
    got = [np.asarray(backend.get(r)) for r in results]
    expected = interpret(graph, [a.copy() for a in inputs])
    if not any(_excess(v, *pair) for v, *pair in zip(graph.all_outputs, got, expected)):
        return results
    reference = _Reference(graph, inputs)
    if not any(reference.excess(v, g) for v, g in zip(graph.all_outputs, got)):
        return results
    raise VerificationError(_first_difference(graph, reference, where))


def _excess(value: Value, got: np.ndarray, expected: np.ndarray, allowed: float = 0.0) -> float:
    """By how much a value differs, relative to the largest; 0 within its tolerance, or within what is ``allowed``."""
    apart, largest = _furthest(got, expected), _magnitude(expected)
    limit = max(allowed, TOLERANCE.get(value.dtype.name, 0.0) * largest)
    return 0.0 if apart <= limit else apart / largest


class _Reference:
    """Every value of a graph as the reference computes it, and how far rounding may move it."""

    def __init__(self, graph: Graph, inputs: Arrays):
        self.values: dict[Value, np.ndarray] = dict(zip(graph.all_inputs, inputs))

        def watched(node: Node, xs: list[Any]) -> Sequence[Any]:
            out = run_reference(node, xs)
            self.values.update((v, np.array(o)) for v, o in zip(node.outputs, out))
            return out

        interpret(graph, [a.copy() for a in inputs], watched)
        self.allowed = allowances(graph, inputs, self.values)

    def excess(self, value: Value, got: np.ndarray) -> float:
        return _excess(value, got, self.values[value], self.allowed.get(value, 0.0))


def _first_difference(graph: Graph, reference: _Reference, where: Device) -> str:
    """Which node is the first to differ from the reference of what it was given, with every value as an output; or else
    (what is wrong may be how nodes are fused) the end of the shortest part of the graph that differs."""
    everything = [v for node in graph.nodes for v in node.outputs]
    got = {v: reference.values[v] for v in graph.all_inputs} | _computed(
        graph, graph.nodes, everything, reference, where
    )
    for node in graph.nodes:
        inputs = [got[v] for v in node.inputs]
        if error := _own_error(node, inputs, [got[v] for v in node.outputs]):
            return _inside(node, inputs, where) or f"{_named(node, where)}, by {error:.3g} of the largest value"
    return _first_fused(graph, reference, where)


def _own_error(node: Node, inputs: Arrays, outputs: Arrays) -> float:
    """By how much a node's results differ from the reference's for the same inputs; 0 if rounding explains it."""
    expected = dict(zip(node.outputs, map(np.asarray, run_reference(node, [x.copy() for x in inputs]))))
    if not any(_excess(v, got, expected[v]) for v, got in zip(node.outputs, outputs)):
        return 0.0
    alone = Graph(node.op.name, list(dict.fromkeys(node.inputs)), [node], list(node.outputs), [])
    given = dict(zip(node.inputs, inputs))
    allowed = allowances(alone, [given[v] for v in alone.inputs], expected)
    return max(_excess(v, got, expected[v], allowed[v]) for v, got in zip(node.outputs, outputs))


def _first_fused(graph: Graph, reference: _Reference, where: Device) -> str:
    """The same for a fault that vanishes when every value is stored: halves the graph until a node more makes it wrong."""
    right, wrong = 0, len(graph.nodes)
    worst = _prefix_error(graph, wrong, reference, where)
    if not worst:
        return f"{where} differs from the reference at the outputs of {graph.name}, but not with its state kept apart"
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if error := _prefix_error(graph, middle, reference, where):
            wrong, worst = middle, error
        else:
            right = middle
    by = f"by {worst:.3g} of the largest value, when compiled together with what it reads (alone it does not differ)"
    return f"{_named(graph.nodes[wrong - 1], where)}, {by}"


def _prefix_error(graph: Graph, count: int, reference: _Reference, where: Device) -> float:
    """The largest error of what the first ``count`` nodes make for the others and as outputs."""
    nodes = graph.nodes[:count]
    read = {*graph.all_outputs, *(v for node in graph.nodes[count:] for v in node.inputs)}
    wanted = [v for node in nodes for v in node.outputs if v in read]
    got = _computed(graph, nodes, wanted, reference, where)
    return max((reference.excess(v, a) for v, a in got.items()), default=0.0)


def _computed(
    graph: Graph, nodes: list[Node], wanted: list[Value], reference: _Reference, where: Device
) -> dict[Value, np.ndarray]:
    """The values ``wanted``, of a program compiled anew of ``nodes`` alone."""
    backend = device(where).backend
    probe = Graph(graph.name, graph.all_inputs, nodes, wanted, [])
    results = backend.compile(probe, where)([backend.put(reference.values[v].copy(), where) for v in graph.all_inputs])
    return {v: np.asarray(backend.get(r)) for v, r in zip(wanted, results)}


def _inside(node: Node, inputs: Arrays, where: Device) -> str:
    """The first difference within a node's sub-graphs, run with what the reference gives them; empty if there is none."""
    backend = device(where).backend
    programs: dict[int, Program] = {}
    for graph, given in _calls(node, inputs):
        if id(graph) not in programs:
            programs[id(graph)] = backend.compile(graph, where)
        try:
            check_against_reference(graph, programs[id(graph)], [backend.put(a, where) for a in given], where)
        except VerificationError as error:
            return f"{error} (inside {node.op.name}{_scope(node)})"
    return ""


def _calls(node: Node, inputs: Arrays) -> Iterator[tuple[Graph, Arrays]]:
    """The sub-graphs that the reference runs for a node, in order, with their arguments."""
    own, calls = set(map(id, node.graphs())), []
    with observing(lambda graph, xs: calls.append((graph, [np.array(x) for x in xs])) if id(graph) in own else None):
        run_reference(node, [a.copy() for a in inputs])
    yield from calls


def _named(node: Node, where: Device) -> str:
    return f"{where} differs from the reference first at {node.op.name}{_scope(node)}: {node!r}"


def _scope(node: Node) -> str:
    return f" in {node.scope}" if node.scope else ""
