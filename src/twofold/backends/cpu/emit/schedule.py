"""The schedule of a nest: which loop becomes vectors, which are shared among the threads.

The vector loop is the one along which memory is contiguous (stores must be; loads are scored: contiguous 1, one value for
all lanes 0, gathered one a lane), weighted by how well its length fills vectors. It may be a reduced loop where partial
results can be combined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twofold.backends.cpu.loops import Expr, Nest, Var
from twofold.base.dtypes import float32

UNITS = 64  # parallel units wanted: enough for any number of cores, few enough that starting one costs nothing
CHUNK = 32  # vectors in a unit where one long loop is cut: 2 KB of float32 on AVX-512
ROW_BLOCK = 4  # rows of a reduction done at a time where results lie side by side
ROW_LEAST = 32  # rounds of the reduction from which on that pays
ROW_WIDTH = 64  # vectors of results whose accumulators lie in the first cache meanwhile


@dataclass(frozen=True)
class Schedule:
    """``shared`` loops are flattened and shared; ``inner`` ones are walked; then the vector loop or the reduction."""

    vector: Var | None
    reduced: bool  # the vector loop is one of the reduced ones
    shared: list[Var]
    inner: list[Var]
    rdims: list[Var]
    unroll: int
    lanes: int
    across: Var | None = None  # a loop along which memory lies that the vector loop would gather: done in square blocks


def schedule(nest: Nest, lanes: int) -> Schedule:
    """Choose; a function of the nest alone (never of the number of threads), so that results have the same bits."""
    vector = choose_vector(nest, lanes)
    reduced = vector in nest.rdims
    across = None if vector is None or reduced else _across(nest, vector, lanes)
    outer = [d for d in nest.dims if d is not vector and d is not across]
    rdims = [d for d in nest.rdims if d is not vector]
    shared: list[Var] = []
    while outer and math.prod(d.extent for d in shared) < UNITS:
        shared.append(outer.pop(0))
    unroll = 1
    if nest.rdims and vector is not None and not nest.each:
        unroll = max(1, min(4, vector.extent // lanes))
    return Schedule(vector, reduced, shared, outer, rdims, unroll, lanes, across)


def gathered(nest: Nest, vector: Var) -> list[Expr]:
    """The loads whose lanes do not lie side by side along a loop."""
    moving = [l for l in nest.loads() if vector in l.extra[1].vars]
    return [l for l in moving if l.extra[1].coefficient(vector) != 1 or l.extra[1].hides(vector)]


def _across(nest: Nest, vector: Var, lanes: int) -> Var | None:
    """The loop along which everything lies that the vector loop would gather, of a map of float32: a transposed copy."""
    loads = gathered(nest, vector)
    if not loads or nest.rdims or nest.accumulators or nest.each or vector.extent % lanes:
        return None
    if any(l.args or l.dtype is not float32 or l.extra[1].hides(vector) for l in loads):
        return None
    along = lambda d: all(l.extra[1].coefficient(d) == 1 and not l.extra[1].hides(d) for l in loads)
    return next((d for d in reversed(nest.dims) if d is not vector and d.extent >= lanes and along(d)), None)


def choose_vector(nest: Nest, lanes: int) -> Var | None:
    """The loop to vectorise, or None if every choice would gather its stores."""
    stores = [s.address for s in nest.all_stores()]
    candidates = [d for d in nest.dims if all(a.coefficient(d) == 1 and not a.hides(d) for a in stores)]
    if nest.rdims and not nest.each and all(a.combine for a in nest.accumulators):
        candidates += nest.rdims
    best, least = None, float(lanes)
    addresses = [l.extra[1] for l in nest.loads()]
    for d in candidates:
        if d.extent < 2:
            continue
        cost = 1.0
        for a in addresses:
            cost += 0.0 if d not in a.vars else 1.0 if a.coefficient(d) == 1 and not a.hides(d) else 1.5 * lanes
        cost /= len(addresses) + 1
        cost *= -(-d.extent // lanes) * lanes / d.extent
        if cost < least:
            best, least = d, cost
    return best


def by_rows(nest: Nest, plan: Schedule) -> bool:
    """Whether to reduce row after row with accumulators in memory: where several vectors of results lie side by side and
    every array of the reduction is read along them."""
    if plan.vector is None or plan.reduced or nest.each or plan.inner or not plan.rdims:
        return False
    if plan.vector.extent < 2 * plan.lanes or nest.work < ROW_LEAST * nest.size:
        return False
    if any(a.dtype.kind != "f" for a in nest.accumulators):
        return False
    row = plan.rdims[-1]
    read = [l.extra[1] for l in nest.loads() if row in l.extra[1].vars]
    return bool(read) and all(a.coefficient(plan.vector) == 1 and not a.hides(plan.vector) for a in read)
