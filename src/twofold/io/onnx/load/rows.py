"""The table of ONNX operators: ``(domain, name)`` -> function from a ``Call`` to a value, known content, or a tuple."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from twofold.base.errors import FormatError
from twofold.ir import Op

Row = Callable[[Any], Any]
ROWS: dict[tuple[str, str], Row] = {}


@functools.cache
def arity(op: Op) -> int:
    """How many operands an elementwise op takes, as its samples show: type rules of these ops take any number."""
    return len(next(iter(op.samples())).inputs)


def check_arity(op: Op, count: int) -> None:
    """FormatError if an elementwise op is given more or fewer operands than it takes."""
    if op.kind == "elementwise" and count != arity(op):
        raise FormatError(f"{op.name} takes {arity(op)} operands, not {count}")


def row(*names: str, domain: str = "") -> Callable[[Row], Row]:
    """Register the reader of some operators."""

    def register(function: Row) -> Row:
        for name in names:
            ROWS[domain, name] = function
        return function

    return register
