"""The schedule of a nest: which loop becomes vectors, which are shared among the threads.

The vector loop is the one along which memory is contiguous (stores must be; loads are scored: contiguous 1, one value for
all lanes 0, gathered one a lane), weighted by how well its length fills vectors. It may be a reduced loop where partial
results can be combined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twofold.backends.cpu.loops import Nest, Var

UNITS = 64  # parallel units wanted: enough for any number of cores, few enough that starting one costs nothing
CHUNK = 32  # vectors in a unit where one long loop is cut: 2 KB of float32 on AVX-512


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


def schedule(nest: Nest, lanes: int) -> Schedule:
    """Choose; a function of the nest alone (never of the number of threads), so that results have the same bits."""
    vector = choose_vector(nest, lanes)
    reduced = vector in nest.rdims
    outer = [d for d in nest.dims if d is not vector]
    rdims = [d for d in nest.rdims if d is not vector]
    shared: list[Var] = []
    while outer and math.prod(d.extent for d in shared) < UNITS:
        shared.append(outer.pop(0))
    unroll = 1
    if nest.rdims and vector is not None and not nest.each:
        unroll = max(1, min(4, vector.extent // lanes))
    return Schedule(vector, reduced, shared, outer, rdims, unroll, lanes)


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
