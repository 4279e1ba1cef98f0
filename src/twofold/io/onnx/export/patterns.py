"""A small pattern language over graphs: patterns are written as the expression they find.

    P.divide(P.exp(x, save="e"), P.sum(same("e")))   ops by name, their operands (in either order if commutative)
    var("x"), const("eps"), same("e")                any value; a scalar constant; the value saved before

A match gives ``{"x": value, "eps": 1e-5, "e": value, ...}``. Ops that only pass numbers on (detach, identity) are
looked through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twofold.ir import Node, Value

TRANSPARENT = {"detach", "identity"}
COMMUTATIVE = {"add", "multiply", "maximum", "minimum", "equal"}
Match = dict[str, Any]


class Pattern:
    """Something a value may match: yields every extension of the match so far."""

    def match(self, value: Value, found: Match) -> Iterator[Match]:
        raise NotImplementedError


@dataclass(frozen=True)
class var(Pattern):
    """Any value, under a name."""

    name: str

    def match(self, value: Value, found: Match) -> Iterator[Match]:
        if found.get(self.name, value) is value:
            yield {**found, self.name: value}


@dataclass(frozen=True)
class same(Pattern):
    """The value saved under a name, again."""

    name: str

    def match(self, value: Value, found: Match) -> Iterator[Match]:
        if through(value) is through(found[self.name]):
            yield found


@dataclass(frozen=True)
class const(Pattern):
    """A constant of which all elements are one number; under a name, or equal to ``number``."""

    name: str = ""
    number: float | None = None

    def match(self, value: Value, found: Match) -> Iterator[Match]:
        number = constant_number(value)
        if number is None or (self.number is not None and not np.isclose(number, self.number, rtol=1e-6, atol=0)):
            return
        if not self.name:
            yield found
        elif found.get(self.name, number) == number:
            yield {**found, self.name: number}


@dataclass(frozen=True)
class call(Pattern):
    """A node of the op ``op`` whose operands match; ``save`` names its output, ``save.node`` its node."""

    op: str
    operands: tuple[Pattern, ...]
    save: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)

    def match(self, value: Value, found: Match) -> Iterator[Match]:
        node = value.producer
        if node is not None and node.op.name in TRANSPARENT and self.op not in TRANSPARENT:
            yield from self.match(node.inputs[0], found)
            return
        if node is None or node.op.name != self.op or len(node.inputs) != len(self.operands):
            return
        if any(node.attrs.get(k) != v for k, v in self.attrs.items()):
            return
        if self.save:
            found = {**found, self.save: value, f"{self.save}.node": node}
        orders = [self.operands, self.operands[::-1]] if self.op in COMMUTATIVE else [self.operands]
        for operands in orders:
            yield from _match_all(operands, node.inputs, found)


def _match_all(patterns: tuple[Pattern, ...], values: tuple[Value, ...], found: Match) -> Iterator[Match]:
    if not patterns:
        yield found
        return
    for extended in patterns[0].match(values[0], found):
        yield from _match_all(patterns[1:], values[1:], extended)


@dataclass(frozen=True)
class either(Pattern):
    """One of several patterns."""

    options: tuple[Pattern, ...]

    def match(self, value: Value, found: Match) -> Iterator[Match]:
        for option in self.options:
            yield from option.match(value, found)


class _Ops:
    """``P.add(a, b)`` is the pattern of an ``add`` node."""

    def __getattr__(self, op: str) -> Any:
        return lambda *operands, save="", **attrs: call(op, operands, save, attrs)


P: Any = _Ops()


def through(value: Value) -> Value:
    """The value behind nodes that only pass it on."""
    while value.producer is not None and value.producer.op.name in TRANSPARENT:
        value = value.producer.inputs[0]
    return value


def constant_number(value: Value) -> Any:
    """The number that every element of a constant value has, else None."""
    value = through(value)
    node: Node | None = value.producer
    while node is not None and node.op.name in ("reshape", "broadcast_to", "cast") and node.inputs:
        node = through(node.inputs[0]).producer
    if node is None:
        return None
    if node.op.name == "full":
        return node.attrs["fill"]
    if node.op.name == "constant":
        array = node.attrs["value"]
        if array.size and (array == array.flat[0]).all():
            return array.flat[0].item() if array.dtype.kind != "V" else float(array.flat[0])
    return None
