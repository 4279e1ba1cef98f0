"""A table that forgets what has not been asked for the longest time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from twofold.base import locks


class Recent:
    """Values by key, ``most`` of them: those asked for last. Safe to use from several threads."""

    def __init__(self, most: int):
        self.most = most
        self._known: OrderedDict[Any, Any] = OrderedDict()
        self._lock = locks.renewed()

    def get(self, key: Any) -> Any:
        """The value; None if there is none."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def put(self, key: Any, value: Any) -> None:
        """Keep a value, which is not None."""
        with self._lock:
            self._known[key] = value
            self._known.move_to_end(key)
            while len(self._known) > self.most:
                self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)
