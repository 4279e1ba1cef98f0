"""Functions of several ops (a convolution and its bias, a normalisation) as one op of an eager computation.

Traced once for each set of argument types, such a function is a graph that the backend runs as one program. The record for
gradients has one node for it, which keeps the arguments alone: on the way back the graph is applied again and differentiated,
in one program too (``pullback``), from which what the gradients do not read is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.autodiff.control import pull_back
from twofold.base.recent import Recent
from twofold.ir import Builder, Graph, Op, Spec, Value, context, grad_mode, interpret, recording
from twofold.ir.assumed import exactly
from twofold.ir.builder import eager_composite
from twofold.tensor.eager import Array, deliver

MOST = 2048  # traced functions; those least recently used are dropped
KIND = "composite"


@dataclass(frozen=True, eq=False)
class Composite:
    """A traced function and the op that stands for it in records."""

    graph: Graph
    op: Op
    specs: tuple[Spec, ...]


_known = Recent(MOST)


def run(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Value | None:
    """The function's result by one program, or None: it is to be called, op by op."""
    arrays = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    if context.precision is not None or not arrays or not all(isinstance(a, Array) for a in arrays):
        return None
    where = arrays[0].device  # type: ignore[attr-defined]
    buffers = [a.buffer for a in arrays]  # type: ignore[attr-defined]
    if not where.backend.runs_composites(buffers) or any(a.device is not where for a in arrays):  # type: ignore[attr-defined]
        return None
    try:
        key = (function, *map(_kind, args), *((name, _kind(a)) for name, a in kwargs.items()))
        known = _known.get(key)
    except TypeError:  # an argument that does not hash
        return None
    if known is None:
        known = _traced(function, args, kwargs)
        _known.put(key, known)
    results = where.backend.run_graph(known.graph, buffers, where)
    return None if results is None else deliver(known.op, arrays, {}, known.specs, results, where)


def _kind(argument: Any) -> Any:
    return argument.spec if isinstance(argument, Value) else exactly(argument)


def _traced(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Composite:
    builder = Builder(function.__name__)
    symbol = lambda a: builder.input(a.spec) if isinstance(a, Value) else a
    with recording(builder), grad_mode(True):
        result = function(*map(symbol, args), **{name: symbol(a) for name, a in kwargs.items()})
    graph = builder.finish([result])
    return Composite(graph, _op(graph), (result.spec,))


def _op(graph: Graph) -> Op:
    def vjp(g: Value, _y: Value, *xs: Value) -> Sequence[Value | None]:
        wanted = [i for i, x in enumerate(xs) if x.dtype.is_floating and (x.requires_grad or type(x) is not Array)]
        found = dict(zip(wanted, pull_back(graph, xs, [0], [g], wanted)))
        return [found.get(i) for i in range(len(xs))]

    infer = lambda *specs: graph.outputs[0].spec
    return Op(graph.name, infer, lambda *xs: interpret(graph, xs)[0], vjp, kind=KIND, arity=len(graph.inputs))


eager_composite.append(run)
