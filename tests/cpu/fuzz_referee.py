"""Judging a program against the exact result: the reference in float64, and how much rounding can move it.

A result may be as far from the exact one as the reference's own rounding takes it, and a few roundings more. How far
rounding can take a graph is tried out: ``shaken`` runs it in float64 with every result moved by one rounding of its dtype.
What even that moves far (a comparison or a floor that flips) cannot be judged, and is counted, not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from twofold.base.dtypes import DType, float64
from twofold.ir import Graph, Node, interpret

ROUNDING = {"float64": 1.1e-16, "float32": 6e-8, "float16": 4.9e-4, "bfloat16": 3.9e-3}
WINOGRAD = 1.5e-6  # of the largest value; the documented bound, 1e-5, is about eight of these
LOST = 1e-2  # of the largest value: results that rounding moves farther than this are not compared
SUMS = frozenset(("reduction", "scan", "matmul", "conv", "normalization", "pool", "indexing"))  # terms in any order
MOVED_ONLY = frozenset(("movement", "creation", "indexing", "sorting", "other", "boundary"))  # nothing is rounded there


class Verdict(NamedTuple):
    """Errors of one output, relative to ``scale``: the program's, and what rounding explains."""

    error: float
    allowed: float
    lost: bool

    @property
    def wrong(self) -> bool:
        return not self.lost and not self.error <= self.allowed


def judge(graph: Graph, arguments: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> list[Verdict]:
    """What to think of ``got``, the results of ``graph`` for ``arguments`` (its ``all_inputs``), output by output."""
    with np.errstate(all="ignore"):
        own = interpret(graph, [a.copy() for a in arguments])
        exact, *moved = (interpret(graph, _wide(arguments), run) for run in (_exact, _shaken(0), _shaken(1)))
    return [_compare(*results) for results in zip(got, own, exact, *moved, strict=True)]


def _compare(got: np.ndarray, own: np.ndarray, exact: np.ndarray, *moved: np.ndarray) -> Verdict:
    assert got.shape == own.shape and got.dtype == own.dtype, (got.shape, got.dtype, own.shape, own.dtype)
    if not np.isfinite(exact := np.asarray(exact, np.float64)).all():
        return Verdict(0.0, 0.0, True)
    scale = max(1e-3, float(np.max(np.abs(exact), initial=0.0)))
    far = lambda a: float(np.max(np.abs(np.asarray(a, np.float64) - exact), initial=0.0)) / scale
    rounding = ROUNDING.get(own.dtype.name, 0.0)
    moved_by = max(far(own), *(far(m) for m in moved))
    error = far(got)
    return Verdict(error if error == error else np.inf, 8 * moved_by + 32 * rounding, moved_by > LOST + 8 * rounding)


def _wide(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [a.astype(np.float64) if a.dtype.name in ROUNDING else a.copy() for a in arrays]


def _exact(node: Node, inputs: list[Any]) -> Sequence[Any]:
    """One node through its reference, floats as float64."""
    attrs = {name: _widened(item) for name, item in node.attrs.items()}
    out = node.op.ref(*inputs, **attrs)
    return tuple(map(np.asarray, out if node.op.multi else (out,)))


def _widened(item: Any) -> Any:
    if isinstance(item, DType):
        return float64 if item.name in ROUNDING else item
    return _wide([item])[0] if isinstance(item, np.ndarray) else item


def _shaken(seed: int) -> Callable[[Node, list[Any]], Sequence[Any]]:
    """Like ``_exact``, with each computed result off by a rounding of its dtype; so are the terms of sums, by what adding them
    one after another does."""
    rng = np.random.default_rng(seed)

    def run(node: Node, inputs: list[Any]) -> Sequence[Any]:
        if node.op.kind in SUMS:
            rounding = ROUNDING["float64" if node.inputs[0].dtype.name == "float64" else "float32"] * _in_a_row(node)
            inputs = [_off(x, rounding, rng) if v.dtype.name in ROUNDING else x for v, x in zip(node.inputs, inputs)]
        if node.op.name == "batch_norm_train":
            return _normalised(*inputs, node.attrs["eps"], rounding, rng)
        results = _exact(node, inputs)
        if node.op.kind in MOVED_ONLY and node.op.kind not in SUMS:
            return results
        if _may_be_winograd(node):
            results = [r + WINOGRAD * np.max(np.abs(r), initial=0.0) * rng.standard_normal(r.shape) for r in results]
        return [
            _off(r, ROUNDING[v.dtype.name], rng) if v.dtype.name in ROUNDING else r
            for v, r in zip(node.outputs, results)
        ]

    return run


def _normalised(x: Any, weight: Any, bias: Any, eps: float, rounding: float, rng: np.random.Generator) -> Sequence[Any]:
    """Batch norm whose moments are sums about the channel's first value, each off by ``rounding`` of what it adds up."""
    axes, shape = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    first = x[(slice(1), slice(None), *[slice(1)] * (x.ndim - 2))]
    apart = x - first
    error = rounding * rng.standard_normal((2, x.shape[1]))
    mean = apart.mean(axes) + error[0] * np.abs(apart).mean(axes)
    variance = np.maximum((apart * apart).mean(axes) * (1 + error[1]) - mean * mean, 0.0)
    mean = mean + first.reshape(-1)
    scale = weight / np.sqrt(variance + eps)
    return (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape), mean, variance


def _may_be_winograd(node: Node) -> bool:
    attrs = node.attrs
    kernel = attrs.get("kernel", node.inputs[1].shape[2:] if node.op.kind == "conv" else ())
    once = node.op.kind == "conv" and set(attrs["strides"]) == set(attrs["dilation"]) == {attrs["groups"]} == {1}
    return once and tuple(kernel) == (3, 3) and node.inputs[0].dtype is not float64


def _in_a_row(node: Node) -> float:
    """How far a sum's terms would have to be off, in roundings, for the error of adding them one by one: the partial sums of
    ``n`` random terms grow as the square root of ``n``, and each is rounded."""
    sizes = [max(1, math.prod(map(int, v.shape))) for v in (*node.inputs[:2], node.outputs[-1])]
    *read, made = sizes
    terms = (
        math.sqrt(math.prod(read) / made) if len(read) == 2 and node.op.kind in ("conv", "matmul") else read[0] / made
    )
    return max(1.0, math.sqrt(terms) / 2)


def _off(array: np.ndarray, rounding: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(array * (1.0 + rounding * rng.standard_normal(array.shape)))
