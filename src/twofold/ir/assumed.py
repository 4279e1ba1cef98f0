"""What a trace takes for granted about the Python objects it went through: settings, parts, which variables train.

An object that a trace depends on has ``assumed()``: name -> what must stay as it is. While a graph is recorded the object
tells the builder (``Builder.watch``). Whoever changes such an object calls ``changed()``: only then do programs look again,
so a call costs one comparison of numbers as a rule.
"""

from __future__ import annotations

from typing import Any

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


def kept(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What may be taken for granted after a trace: not what it has changed itself (a counter of calls, the last shape), for
    the next trace of the same code would change it again."""
    settled = lambda name, value: name not in before or before[name] is value or before[name] == value
    return {name: value for name, value in now.items() if settled(name, value)}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing that is not as it was, in words; empty if all is. What was not there before is no matter."""
    for name, old in before.items():
        if name not in now:
            return f"{name} was {old!r}, is gone"
        new = now[name]
        if new != old and new is not old:
            same = repr(new) == repr(old)
            return f"{name} is another one" if same else f"{name} was {old!r}, is {new!r}"
    return ""
