"""SSA values as text: a type and a name. Addresses and counters are ``Index``: a Python int or an i64 value."""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple


class Value(NamedTuple):
    """An SSA value or constant: ``str(v)`` is ``"float %x"``, ``v.name`` is ``"%x"``."""

    type: str
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def lanes(self) -> int:
        """Elements of a vector; 0 for a scalar."""
        return _lanes(self.type)

    @property
    def element(self) -> str:
        """The element type of a vector, or the type itself of a scalar."""
        return self.type.split(" x ", 1)[1][:-1] if self.type.startswith("<") else self.type

    @property
    def is_float(self) -> bool:
        return self.element in FLOAT_BITS


@functools.cache
def _lanes(type: str) -> int:
    return int(type[1:].split(" ", 1)[0]) if type.startswith("<") else 0


Index = int | Value

FLOAT_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
BITS = {"i1": 8, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "ptr": 64} | FLOAT_BITS  # as stored in memory


def vector(element: str, lanes: int) -> str:
    """The type of ``lanes`` elements; a plain scalar for 0 lanes."""
    return f"<{lanes} x {element}>" if lanes else element


def _literal(element: str, value: bool | int | float) -> str:
    if element in ("float", "double"):
        number = float(value)
        if element == "float":
            try:
                number = struct.unpack("f", struct.pack("f", number))[0]
            except OverflowError:
                number = float("inf") if number > 0 else -float("inf")
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    if element == "half":
        return f"0xH{struct.unpack('<H', struct.pack('<e', float(value)))[0]:04X}"
    if element == "bfloat":  # round to nearest even on the float32 pattern
        bits = struct.unpack("<I", struct.pack("<f", float(value)))[0]
        return f"0xR{((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) & 0xFFFF:04X}"
    if element == "i1":
        return "true" if value else "false"
    return str(int(value))


def const(type: str, value: bool | int | float) -> Value:
    """A constant of a scalar or vector type (the same in every lane)."""
    shape = Value(type, "")
    literal = _literal(shape.element, value)
    if not shape.lanes:
        return Value(type, literal)
    return Value(type, f"<{', '.join([f'{shape.element} {literal}'] * shape.lanes)}>")
