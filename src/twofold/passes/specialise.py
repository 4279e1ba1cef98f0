"""specialise: sizes for the symbolic dimensions; what depended on them becomes constant.

graph f(%x: f32[N,3])   { ... dim_size() {dim=N} ... }     with N = 8 becomes
graph f(%x: f32[8,3])   { ... constant() {value=8} ... }
"""

from __future__ import annotations

from collections.abc import Mapping

from twofold.base.dims import Dim
from twofold.base.errors import ShapeError
from twofold.ir import Graph
from twofold.ir.rewrite import specialise as substituted


def specialise(graph: Graph, sizes: Mapping[str, Dim]) -> Graph:
    """``graph`` for the given sizes (at least one each). Every symbol of its inputs must be named.

    Raises ShapeError for a missing symbol, or where an op does not fit the sizes.
    """
    missing = sorted(graph.symbols() - set(sizes))
    if missing:
        given = ", ".join(sizes) or "nothing"
        raise ShapeError(f"graph {graph.name!r}: no size given for {', '.join(missing)}; got sizes for {given}")
    return substituted(graph, sizes)
