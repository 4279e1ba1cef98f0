"""Control flow: branches and bodies are programs of their own, driven from Python; each is compiled when first taken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.ir import Graph, Node

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

Run = Callable[..., Sequence[np.ndarray]]


def _programs(low: Lowering, node: Node) -> Callable[[str], Callable[[list[Any]], list[Any]]]:
    """The program of the sub-graph in an attribute, compiled when first asked for."""
    compile_graph = low.compile_graph

    @functools.cache
    def program(name: str) -> Callable[[list[Any]], list[Any]]:
        graph: Graph = node.attrs[name]
        return compile_graph(graph)

    return program


def _cond(low: Lowering, node: Node) -> None:
    program = _programs(low, node)
    low.host(node, "cond", lambda pred, *operands: program("true" if pred else "false")(list(operands)))


def _while_loop(low: Lowering, node: Node) -> None:
    program, carries, limit = _programs(low, node), node.attrs["carries"], node.attrs["max_iterations"]

    def run(*operands: np.ndarray) -> Sequence[np.ndarray]:
        carry, invariants, count = list(operands[:carries]), list(operands[carries:]), 0
        while (limit is None or count < limit) and program("cond")([*carry, *invariants])[0]:
            carry = program("body")([*carry, *invariants])
            count += 1
        return carry

    low.host(node, "while_loop", run)


def _scan(low: Lowering, node: Node) -> None:
    program, attrs = _programs(low, node), node.attrs
    carries, xs, length = attrs["carries"], attrs["xs"], int(attrs["length"])
    specs = [v.spec for v in node.outputs[carries:]]

    def run(*operands: np.ndarray) -> Sequence[np.ndarray]:
        carry, sequences = list(operands[:carries]), operands[carries : carries + xs]
        out = [np.empty(s.shape, s.dtype.numpy) for s in specs]
        for i in reversed(range(length)) if attrs["reverse"] else range(length):
            before = carry
            results = program("body")([*carry, *(x[i] for x in sequences), *operands[carries + xs :]])
            carry = results[:carries]
            for target, y in zip(out, [*results[carries:], *before]):
                target[i] = y
        return [*carry, *out]

    low.host(node, "scan", run)


def _checkpoint(low: Lowering, node: Node) -> None:
    """Passes inline these; one that is left runs as a program of its own."""
    program = _programs(low, node)
    low.host(node, "checkpoint", lambda *operands: program("body")(list(operands)))


def _custom_vjp(low: Lowering, node: Node) -> None:
    """Only differentiation reads the rule; the results are operands."""
    first = node.attrs["args"]
    for out, v in zip(node.outputs, node.inputs[first : first + node.attrs["results"]]):
        low.result(out, low.placed(v, "custom_vjp returns it"))


NESTS: dict[str, Any] = {
    "cond": _cond, "while_loop": _while_loop, "scan": _scan, "checkpoint": _checkpoint, "custom_vjp": _custom_vjp,
}  # fmt: skip
