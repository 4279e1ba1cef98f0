"""``tw.linalg``: the array API standard's linear algebra on tensors."""

from __future__ import annotations

from typing import Any

from twofold.ops import linalg
from twofold.tensor.functions import lift

__all__ = list(linalg.NAMES)
globals().update({name: lift(getattr(linalg, name)) for name in linalg.NAMES})


def __getattr__(name: str) -> Any:  # for type checkers: the names come from a table
    raise AttributeError(f"module 'twofold.linalg' has no attribute {name!r}")
