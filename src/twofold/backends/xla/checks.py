"""Range checks inside programs that cannot raise.

XLA clamps an index that is out of range. Here each indexing row notes its range; a program returns, beside its results,
one flag ``int64[2]``: the number of the first check that failed (0: none) and the index that came. The host reads it
and raises the same IndexRangeError as the reference.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from twofold.base.errors import IndexRangeError


@dataclass
class Frame:
    """What goes along while one graph is lowered. ``messages`` and ``sizes`` (of symbols, where a program is exported
    for every batch size) are shared with the graphs inside it."""

    messages: list[str] = field(default_factory=list)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    flag: Any = None
    scope: str = ""

    def result(self) -> Any:
        """The flag as an array, also when nothing was checked."""
        return jnp.zeros(2, jnp.int64) if self.flag is None else self.flag

    def merge(self, flag: Any) -> None:
        """Keep the earliest failure."""
        self.flag = flag if self.flag is None else jnp.where(self.flag[0] > 0, self.flag, flag)


class _Stack(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


_stack = _Stack()


def current() -> Frame:
    """The frame of the graph that is being lowered."""
    return _stack.frames[-1]


@contextlib.contextmanager
def collecting(messages: list[str], sizes: Mapping[str, Any] | None = None) -> Iterator[Frame]:
    """Checks noted in the block go to the frame given, their texts to ``messages``."""
    frame = Frame(messages, sizes or {})
    _stack.frames.append(frame)
    try:
        yield frame
    finally:
        _stack.frames.pop()


def in_range(name: str, indices: Any, size: int, axis: int, negative: bool = True) -> Any:
    """``indices`` counted from the front; noted for checking against ``size``."""
    low = -size if negative else 0
    if indices.size:
        frame = current()
        place = f"{frame.scope}: " if frame.scope else ""
        came = f"{place}{name}: index {{}} is out of range for axis {axis} of size {size}"
        frame.messages.append(f"{came}; expected {low} <= index < {size}")
        wide = indices.reshape(-1).astype(jnp.int64)
        wrong = (wide < low) | (wide >= size)
        found = jnp.stack([jnp.where(wrong.any(), len(frame.messages), 0), wide[jnp.argmax(wrong)]])
        frame.merge(jnp.where(found[0] > 0, found, 0))
    if indices.dtype.kind != "i":
        return indices
    return jnp.where(indices < 0, indices + size, indices) if negative else indices


def report(flag: Any, messages: list[str]) -> None:
    """Raise IndexRangeError for the check that failed, if one did."""
    if messages:
        number, index = (int(n) for n in flag)
        if number:
            raise IndexRangeError(messages[number - 1].format(index))
