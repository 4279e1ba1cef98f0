"""What a trace takes for granted about the Python objects it went through: settings, parts, which variables train.

An object that a trace depends on has ``assumed()``: name -> what must stay as it is. While a graph is recorded the object
tells the builder (``Builder.watch``). Whoever changes such an object calls ``changed()``: only then do programs look again,
so a call costs one comparison of numbers as a rule.

That counts more than a trace looked at: a module's number of the epoch, say. So when something has changed, the next trace
notes whether it reads just that (``reads``); what it does not read it need not take for granted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

Place = tuple[Any, str]  # an object, and what it calls one of the things that ``assumed()`` gives

PLAIN = (bool, int, float, complex, str, bytes, type(None))


class _Count:
    changes = 1


def changed() -> None:
    """Something that traces may have taken for granted is not what it was."""
    _Count.changes += 1


def changes() -> int:
    """How many changes there have been."""
    return _Count.changes


class Same:
    """An object that is compared by being the very same one."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"a {type(self.thing).__name__}"


def fixed(value: Any) -> Any:
    """``value`` as it is now, for comparison later: plain values and what lists, tuples and dicts of them hold by content,
    everything else by identity."""
    if isinstance(value, PLAIN):
        return value
    if type(value) in (list, tuple):
        return [fixed(v) for v in value]
    if type(value) is dict:
        return {k: fixed(v) for k, v in value.items()}
    return Same(value)


def exactly(value: Any) -> tuple[Any, ...]:
    """A key for a hashable ``value`` that tells apart what ``==`` does not: 1, True and 1.0, zeros of either sign; one NaN is
    like the other. The value itself stands second."""
    if isinstance(value, tuple):
        return type(value), value, tuple(map(exactly, value))
    if isinstance(value, (float, np.floating)):
        return type(value), "nan" if value != value else value, math.copysign(1, value)
    return type(value), value


def kept(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What may be taken for granted after a trace: not what it has changed itself (a counter of calls, the last shape), for
    the next trace of the same code would change it again."""
    settled = lambda name, value: name not in before or before[name] is value or before[name] == value
    return {name: value for name, value in now.items() if settled(name, value)}


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of what is not as it was. What was not there before is no matter."""
    return [n for n, old in before.items() if n not in now or (now[n] is not old and now[n] != old)]


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing that is not as it was, in words; empty if all is."""
    for name in differing(before, now):
        old = before[name]
        if name not in now:
            return f"{name} was {old!r}, is gone"
        same = repr(now[name]) == repr(old)
        return f"{name} is another one" if same else f"{name} was {old!r}, is {now[name]!r}"
    return ""


@contextlib.contextmanager
def reads(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Of these places, those that are plain values of an object's own and are not read in the block: the list is right after
    it.

    Meanwhile the attribute is a descriptor of the object's class, which notes for whom it is read. It does not see who looks
    into ``__dict__``: an attribute counts as unread only if the graph too stayed as it was (``CompiledFunction._entry``).
    """
    watched = [(thing, name) for thing, name in places if _plain_attribute(thing, name)]
    seen: set[tuple[int, str]] = set()
    doors = {(type(thing), name): _Noted(name, seen) for thing, name in watched}
    unread: list[Place] = []
    for (kind, name), door in doors.items():
        setattr(kind, name, door)
    try:
        yield unread
    finally:
        whole = {at for at, door in doors.items() if vars(at[0]).get(at[1]) is door}  # not replaced by another thread's
        for kind, name in whole:
            delattr(kind, name)
    unread += [(t, name) for t, name in watched if (type(t), name) in whole and (id(t), name) not in seen]


def _plain_attribute(thing: Any, name: str) -> bool:
    """Whether it is a number or a text that the object alone holds (parts are found by looking through all attributes)."""
    held = getattr(thing, "__dict__", {})
    return name in held and isinstance(held[name], PLAIN) and not hasattr(type(thing), name)


class _Noted:
    """An attribute of instances that notes who was asked for it."""

    def __init__(self, name: str, seen: set[tuple[int, str]]):
        self.name, self.seen = name, seen

    def __get__(self, thing: Any, kind: type) -> Any:
        if thing is None:
            return self
        self.seen.add((id(thing), self.name))
        if self.name not in vars(thing):
            raise AttributeError(f"{kind.__name__!r} object has no attribute {self.name!r}")
        return vars(thing)[self.name]

    def __set__(self, thing: Any, value: Any) -> None:
        vars(thing)[self.name] = value

    def __delete__(self, thing: Any) -> None:
        del vars(thing)[self.name]
