"""Running a graph node by node over NumPy arrays: the meaning of a graph, and the loop every interpreter shares."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twofold.ir.values import Graph, Node, Value

Runner = Callable[[Node, list[Any]], Sequence[Any]]
Observer = Callable[[Graph, Sequence[Any]], None]


class _Observers(threading.local):
    def __init__(self) -> None:
        self.stack: list[Observer] = []


_observers = _Observers()


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Calls ``observer(graph, arguments)`` before each run of a graph or sub-graph in the block, on this thread."""
    _observers.stack.append(observer)
    try:
        yield
    finally:
        _observers.stack.pop()


def run_reference(node: Node, inputs: list[Any]) -> Sequence[Any]:
    """One node through its record's ``ref``."""
    out = node.op.ref(*inputs, **node.attrs)
    return out if node.op.multi else (out,)


def interpret(graph: Graph, arguments: Sequence[Any], run: Runner = run_reference) -> list[Any]:
    """Outputs and new state of ``graph`` for ``arguments`` (its ``all_inputs``); buffers are dropped after their last use."""
    for observer in _observers.stack:
        observer(graph, arguments)
    environment: dict[Value, Any] = dict(zip(graph.all_inputs, arguments, strict=True))
    keep = set(graph.all_outputs)
    last = {value: node for node in graph.nodes for value in node.inputs}
    for node in graph.nodes:
        results = run(node, [environment[v] for v in node.inputs])
        environment.update(zip(node.outputs, results))
        for value in node.inputs:
            if last[value] is node and value not in keep:
                environment.pop(value, None)
    return [environment[v] for v in graph.all_outputs]
