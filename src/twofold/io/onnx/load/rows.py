"""The table of ONNX operators: ``(domain, name)`` -> function from a ``Call`` to a value, known content, or a tuple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = Callable[[Any], Any]
ROWS: dict[tuple[str, str], Row] = {}


def row(*names: str, domain: str = "") -> Callable[[Row], Row]:
    """Register the reader of some operators."""

    def register(function: Row) -> Row:
        for name in names:
            ROWS[domain, name] = function
        return function

    return register
