"""Locks that a forked child finds open.

A thread of the parent may hold a lock at the moment of a fork; it does not exist in the child, and would never give it back.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

_made: weakref.WeakSet[Any] = weakref.WeakSet()


def renewed(kind: Callable[[], Any] = threading.Lock) -> Any:
    """A new lock (``kind``: ``threading.Lock`` or ``RLock``), opened in every forked child."""
    lock = kind()
    _made.add(lock)
    return lock


def _open_all() -> None:
    for lock in list(_made):
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
