"""How far rounding may move each value of a graph: tried out, by running the reference with small errors put in.

Where large terms cancel (the gradient of a bias before batch norm is zero but for rounding) a result says nothing about its
error; what the same noise does to it elsewhere does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from twofold.ir import Graph, Node, Value, interpret
from twofold.ir.interpret import run_reference

# what a dtype's results may differ by, relative to the largest magnitude of the reference
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
# The relative errors put in: more than a kernel makes (Winograd's included), so that comparisons near a tie (a ReLU's mask)
# come out otherwise here if they may do so there.
ERROR = {dtype: allowed / 10 for dtype, allowed in TOLERANCE.items()}
RUNS = 2
SAFETY = 8.0  # the largest of a few samples is smaller than the largest there may be
SUMS = frozenset(("conv", "matmul", "normalization", "scan", "linalg"))
ADDING = frozenset(
    ("sum", "prod", "avg_pool", "avg_pool_grad", "max_pool_grad", "scatter_add", "add_along_axis", "add_nd")
)
PICKING = frozenset(("where", "maximum", "minimum", "relu", "abs", "negative"))  # exact; equal values stay equal


def allowances(graph: Graph, inputs: Sequence[np.ndarray], known: Mapping[Value, np.ndarray]) -> dict[Value, float]:
    """For every value the reference computes, the largest difference from what is ``known`` that rounding explains."""
    found: dict[Value, float] = {}
    for seed in range(RUNS):
        interpret(graph, [a.copy() for a in inputs], _noisy(np.random.default_rng(seed), known, found))
    return found


def _noisy(
    rng: np.random.Generator, known: Mapping[Value, np.ndarray], found: dict[Value, float]
) -> Callable[[Node, list[Any]], Sequence[Any]]:
    """A runner that puts errors into the terms of sums and the results of arithmetic, and notes how far values have moved."""

    def run(node: Node, xs: list[Any]) -> Sequence[Any]:
        if node.op.kind in SUMS or node.op.name in ADDING:
            xs = [_off(v, x, rng) for v, x in zip(node.inputs, xs)]
        out = list(run_reference(node, xs))
        if node.op.kind == "elementwise" and node.op.name not in PICKING:
            out = [_off(v, o, rng) for v, o in zip(node.outputs, out)]
        for value, o in zip(node.outputs, out):
            moved = np.abs(np.asarray(o, np.float64) - np.asarray(known[value], np.float64))
            far = SAFETY * float(np.max(moved, initial=0.0, where=np.isfinite(moved)))
            found[value] = max(found.get(value, 0.0), far)
        return out

    return run


def _off(value: Value, x: Any, rng: np.random.Generator) -> Any:
    error = ERROR.get(value.dtype.name)
    if error is None:
        return x
    return np.asarray(x * (1.0 + error * rng.standard_normal(np.shape(x)))).astype(value.dtype.numpy)
