"""THE list of passes, and ``optimise``, which runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from twofold.base import flags
from twofold.ir import Graph
from twofold.ir.text import print_graph
from twofold.ir.verify import verify
from twofold.passes.common_subexpressions import common_subexpressions
from twofold.passes.dead_code import dead_code
from twofold.passes.fold_constants import fold_constants
from twofold.passes.fold_scales import fold_scales
from twofold.passes.join_slices import join_slices
from twofold.passes.simplify import simplify

Pass = Callable[[Graph], Graph]

PIPELINE: tuple[Pass, ...] = (
    dead_code,  # first, so that nothing is spent on what a gradient or a branch left behind
    simplify,
    fold_constants,
    simplify,  # on the numbers now known
    common_subexpressions,
    join_slices,
    fold_scales,
    dead_code,
)


def optimise(graph: Graph, *, dump: Callable[[str, Graph], None] | None = None) -> Graph:
    """``graph`` through every pass of ``PIPELINE``, verified before and after; the graph given is not changed.

    ``dump(name, graph)`` is called with the start and after each pass; TWOFOLD_DEBUG=3 prints them to stderr. GraphError
    names the pass that broke the graph: if something fails, all run once more with a look after each.
    """
    if dump is None and flags.get("TWOFOLD_DEBUG") >= 3:
        dump = _print
    verify(graph, "recording")
    if dump:
        dump("recorded", graph)
    try:
        return verify(_through(graph, dump, look=dump is not None), "the passes")
    except Exception:
        _through(graph, None, look=True)
        raise


def _through(graph: Graph, dump: Callable[[str, Graph], None] | None, look: bool) -> Graph:
    for run in PIPELINE:
        graph = run(graph)
        if look:
            verify(graph, run.__name__)
        if dump:
            dump(run.__name__, graph)
    return graph


def _print(name: str, graph: Graph) -> None:
    print(f"# {name}\n{print_graph(graph)}\n", file=sys.stderr)
