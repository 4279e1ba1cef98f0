"""Recording the branches and bodies of control flow as graphs.

    parts = [record(parent, "true", specs, f), record(parent, "false", specs, g)]      foreign values are captured
    operands = share_inputs(parts)                                                     all parts take the same inputs

A part's inputs are its arguments, then whatever any part captured; ``operands`` are the parent's values for the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twofold.ir.builder import Builder, SymbolicValue, recording
from twofold.ir.values import Graph, Spec, State, Value


class Part:
    """One branch or body: its builder and what the function returned (``result``)."""

    def __init__(self, parent: Builder, name: str, arguments: Sequence[Value], function: Callable[..., Any]):
        """Record ``function`` of values like ``arguments`` (their types, names and gradient flags)."""
        self.builder = Builder(name, parent)
        inputs = [self.builder.input(v.spec, v.name) for v in arguments]
        for inner, outer in zip(inputs, arguments):
            inner.requires_grad, inner.detached = outer.requires_grad, outer.detached
        with recording(self.builder):
            self.result = function(*inputs)

    @property
    def writes(self) -> list[State]:
        return self.builder.writes()

    def value_of(self, variable: Any) -> Value:
        """The value a variable has when the part ends; captured if the part does not mention it."""
        return self.builder.read(variable)

    def finish(self, outputs: Sequence[Value]) -> Graph:
        with recording(self.builder):
            return self.builder.finish(outputs)


def written_variables(parts: Sequence[Part]) -> list[Any]:
    """Every variable that some part assigns, in order of first assignment, each once."""
    found = {id(s.variable): s.variable for part in parts for s in part.writes}
    return list(found.values())


def share_inputs(parts: Sequence[Part], first: Sequence[Any] = ()) -> list[Value]:
    """Give all parts the same captured inputs, those of the variables ``first`` foremost; returns the parent's values.

    Call it when nothing more will be captured.
    """
    leading = [("variable", id(v)) for v in first]
    found = {key: outer for part in parts for key, (outer, _) in part.builder.captures.items()}
    order = [*leading, *(k for k in found if k not in set(leading))]
    for part in parts:
        captured = part.builder.captures
        part.builder.graph.inputs += [
            captured[k][1] if k in captured else SymbolicValue(part.builder, found[k].spec) for k in order
        ]
    return [found[k] for k in order]


def closed(name: str, specs: Sequence[Spec], function: Callable[..., Sequence[Value]]) -> Graph:
    """The graph of a function of values that uses nothing but its arguments."""
    builder = Builder(name)
    arguments = [builder.input(spec) for spec in specs]
    with recording(builder):
        return builder.finish(function(*arguments))
