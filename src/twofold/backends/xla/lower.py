"""From a graph to jax: one interpreter over the table, traced by jax. Importing this module loads jax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from twofold.backends.xla import checks
from twofold.backends.xla.table import TABLE
from twofold.base.dims import Sym, substitute
from twofold.base.errors import UnsupportedOpError
from twofold.ir import Graph, Node, Op, interpret


def row(op: Op) -> Callable[..., Any]:
    """The op's row; UnsupportedOpError if the table has none."""
    found = TABLE.get(op.name)
    if found is None:
        raise UnsupportedOpError(f"op {op.name!r} has no row in the xla backend's table; run it on 'cpu'")
    return found


def _lower(node: Node, inputs: list[Any]) -> Sequence[Any]:
    frame = checks.current()
    frame.scope = node.scope
    attrs = {k: _sized(v, frame.sizes) for k, v in node.attrs.items()} if frame.sizes else node.attrs
    with jax.named_scope(node.scope.replace(".", "/") or node.op.name):
        out = row(node.op)(*inputs, **attrs)
    return out if node.op.multi else (out,)


def _sized(attribute: Any, sizes: Mapping[str, Any]) -> Any:
    """An attribute with jax's symbolic sizes in place of ours."""
    if isinstance(attribute, Sym):
        return substitute(attribute, sizes)
    return tuple(_sized(a, sizes) for a in attribute) if isinstance(attribute, tuple) else attribute


def evaluate(graph: Graph, arguments: Sequence[Any]) -> list[Any]:
    """The graph's results for jax arrays, inside a trace; range checks go to the current frame."""
    return interpret(graph, arguments, _lower)


def function_of(graph: Graph, messages: list[str]) -> Callable[..., Any]:
    """A function of ``graph.all_inputs`` for ``jax.jit``: (results, check flag). Tracing it fills ``messages``."""

    def program(*arguments: Any) -> tuple[list[Any], Any]:
        messages.clear()
        with checks.collecting(messages) as frame:
            return evaluate(graph, arguments), frame.result()

    program.__name__ = "".join(c if c.isalnum() else "_" for c in graph.name) or "program"
    return program


def function_of_op(op: Op, attrs: dict[str, Any], messages: list[str]) -> Callable[..., Any]:
    """One op as a function for ``jax.jit``: (results, check flag)."""

    def apply(*arguments: Any) -> tuple[Sequence[Any], Any]:
        messages.clear()
        with checks.collecting(messages) as frame:
            out = row(op)(*arguments, **attrs)
            return (out if op.multi else (out,)), frame.result()

    apply.__name__ = op.name
    return apply
