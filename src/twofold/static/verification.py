"""Running a program beside the reference and naming the first node that differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.backends import Device, Program, device
from twofold.base.errors import VerificationError
from twofold.ir import Graph, Node
from twofold.ir.interpret import interpret, run_reference

# what a dtype's results may differ by, relative to the largest magnitude of the reference
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest magnitude; infinite where NaNs or infinities do not match."""
    if got.shape != expected.shape:
        return float("inf")
    a, b = got.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    a, b = np.where(same, 0.0, a), np.where(same, 0.0, b)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        return float("inf")
    scale = np.max(np.abs(np.where(np.isfinite(expected.astype(np.float64)), expected, 0.0)), initial=0.0)
    return float(np.max(np.abs(a - b), initial=0.0) / max(float(scale), 1e-6))


def check_against_reference(graph: Graph, program: Program, buffers: Sequence[Any], where: Device) -> list[Any]:
    """The program's results, after comparing them with the reference's."""
    backend = where.backend
    inputs = [np.array(backend.get(b)) for b in buffers]
    results = program(list(buffers))
    expected = interpret(graph, [a.copy() for a in inputs])
    values = graph.all_outputs
    if all(_agree(v.dtype.name, backend.get(r), e) for v, r, e in zip(values, results, expected)):
        return results
    raise VerificationError(_first_difference(graph, inputs, where))


def _agree(dtype: str, got: Any, expected: np.ndarray) -> bool:
    return difference(np.asarray(got), expected) <= TOLERANCE.get(dtype, 0.0)


def _first_difference(graph: Graph, inputs: list[np.ndarray], where: Device) -> str:
    """Runs both again with every intermediate value as an output, and says which node is the first to differ."""
    reference: list[tuple[Node, list[np.ndarray]]] = []

    def watched(node: Node, xs: list[Any]) -> Sequence[Any]:
        out = run_reference(node, xs)
        reference.append((node, [np.array(o) for o in out]))
        return out

    interpret(graph, [a.copy() for a in inputs], watched)
    everything = [v for node in graph.nodes for v in node.outputs]
    probe = Graph(graph.name, graph.all_inputs, graph.nodes, everything, [])
    backend = device(where).backend
    found = iter(backend.compile(probe, where)([backend.put(a.copy(), where) for a in inputs]))
    for node, expected in reference:
        for want in expected:
            got = np.asarray(backend.get(next(found)))
            error = difference(got, want)
            if error > TOLERANCE.get(node.outputs[0].dtype.name, 0.0):
                place = f" in {node.scope}" if node.scope else ""
                first = f"{where} differs from the reference first at {node.op.name}{place}: {node!r}"
                return f"{first}, by {error:.3g} of the largest value"
    return f"{where} differs from the reference at the outputs of {graph.name}, but at no single node when each is an output"
