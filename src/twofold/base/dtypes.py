"""Data types: the table, promotion (Python array API standard), and conversion from and to NumPy.

Promotion follows the standard's table: within a kind the wider wins, signed with unsigned meets in the next signed,
and *mixed kinds of arrays are an error* (an int array plus a float array must be cast first). Python scalars are weak:
they take the dtype of the array they meet. ``bfloat16`` and ``float16`` meet in ``float32``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from twofold.base.errors import DtypeError


class DType:
    """One data type. ``name`` is NumPy's, ``short`` is what printed graphs use (``f32``)."""

    __slots__ = ("bits", "kind", "name", "short")

    def __init__(self, name: str, short: str, kind: str, bits: int):
        self.name, self.short, self.kind, self.bits = name, short, kind, bits

    @property
    def itemsize(self) -> int:
        """Bytes one element takes."""
        return max(1, self.bits // 8)

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype (``bfloat16`` through ml_dtypes)."""
        return _numpy_dtype(self.name)

    @property
    def is_floating(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    def __repr__(self) -> str:
        return f"twofold.{self.name}"

    def __reduce__(self):
        return (as_dtype, (self.name,))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self is other
        try:
            return as_dtype(other) is self
        except DtypeError:
            return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)


@functools.cache
def _numpy_dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


bool_ = DType("bool", "bool", "b", 1)
uint8 = DType("uint8", "u8", "u", 8)
uint16 = DType("uint16", "u16", "u", 16)
uint32 = DType("uint32", "u32", "u", 32)
uint64 = DType("uint64", "u64", "u", 64)
int8 = DType("int8", "i8", "i", 8)
int16 = DType("int16", "i16", "i", 16)
int32 = DType("int32", "i32", "i", 32)
int64 = DType("int64", "i64", "i", 64)
bfloat16 = DType("bfloat16", "bf16", "f", 16)
float16 = DType("float16", "f16", "f", 16)
float32 = DType("float32", "f32", "f", 32)
float64 = DType("float64", "f64", "f", 64)

ALL = (bool_, uint8, uint16, uint32, uint64, int8, int16, int32, int64, bfloat16, float16, float32, float64)
FLOATS = tuple(d for d in ALL if d.kind == "f")
INTS = tuple(d for d in ALL if d.is_integer)
BY_NAME = {d.name: d for d in ALL}
BY_SHORT = {d.short: d for d in ALL}
_PYTHON = {bool: bool_, int: int64, float: float32}

KINDS: dict[str, tuple[DType, ...]] = {
    "bool": (bool_,),
    "signed integer": tuple(d for d in ALL if d.kind == "i"),
    "unsigned integer": tuple(d for d in ALL if d.kind == "u"),
    "integral": INTS,
    "real floating": FLOATS,
    "complex floating": (),
    "numeric": INTS + FLOATS,
}


def as_dtype(like: Any) -> DType:
    """The ``DType`` meant by a DType, a NumPy dtype or scalar type, a Python type, or a name.

    Raises DtypeError for anything without a counterpart (complex, strings, objects).
    """
    if isinstance(like, DType):
        return like
    if isinstance(like, str) and like in BY_NAME:
        return BY_NAME[like]
    if isinstance(like, type) and like in _PYTHON:
        return _PYTHON[like]
    try:
        name = np.dtype(like).name if isinstance(like, (str, type, np.dtype)) else ""
    except (TypeError, ValueError):
        name = ""
    if name not in BY_NAME:
        raise DtypeError(f"dtype {like!r} is not supported; expected one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


@functools.cache
def promote(a: DType, b: DType) -> DType:
    """The dtype in which two arrays meet, by the array API standard; DtypeError for mixed kinds."""
    if a is b:
        return a
    if a.kind == b.kind:
        if a.bits == b.bits:  # bfloat16 with float16
            return float32
        return a if a.bits > b.bits else b
    if {a.kind, b.kind} == {"i", "u"}:
        signed, unsigned = (a, b) if a.kind == "i" else (b, a)
        if signed.bits > unsigned.bits:
            return signed
        if unsigned.bits < 64:
            return BY_NAME[f"int{unsigned.bits * 2}"]
    raise DtypeError(
        f"{a.name} and {b.name} do not promote (mixed kinds of arrays are refused); "
        f"cast one of them, for example x.astype(tw.{(a if a.is_floating else b).name})"
    )


def sum_dtype(dtype: DType) -> DType:
    """The dtype in which sums over ``dtype`` are gathered: float32 for 16-bit floats."""
    return float32 if dtype.is_floating and dtype.bits == 16 else dtype


def scalar_dtype(value: bool | int | float, meets: DType | None) -> DType:
    """The dtype a Python scalar takes beside an array of dtype ``meets`` (None: on its own)."""
    own = _PYTHON[bool if isinstance(value, (bool, np.bool_)) else int if isinstance(value, int) else float]
    meets = meets or own
    if own is bool_ and meets is not bool_:
        raise DtypeError(f"a Python bool does not combine with a {meets.name} array; cast the array to bool")
    if meets is bool_ and own is not bool_:
        raise DtypeError(f"a Python {type(value).__name__} does not combine with a bool array; cast the array first")
    if own.is_floating and not meets.is_floating:
        raise DtypeError(
            f"a Python float does not combine with a {meets.name} array; cast the array, e.g. x.astype(tw.float32)"
        )
    if meets.is_integer:
        low, high = int(np.iinfo(meets.numpy).min), int(np.iinfo(meets.numpy).max)
        if not low <= value <= high:
            raise OverflowError(f"Python int {value} does not fit {meets.name} [{low}, {high}]")
    return meets


def is_kind(dtype: DType, kind: str | DType | tuple) -> bool:
    """The array API standard's ``isdtype``."""
    if isinstance(kind, tuple):
        return any(is_kind(dtype, k) for k in kind)
    if isinstance(kind, DType):
        return dtype is kind
    if kind not in KINDS:
        raise DtypeError(f"kind {kind!r} is unknown; expected one of {', '.join(map(repr, KINDS))}")
    return dtype in KINDS[kind]
