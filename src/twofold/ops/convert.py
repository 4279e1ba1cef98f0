"""From what a user writes to values: Python scalars, NumPy arrays and symbolic dims become constants; dtypes meet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from twofold.base.dims import Dim, Sym
from twofold.base.dtypes import DType, as_dtype, promote, scalar_dtype
from twofold.base.errors import DtypeError
from twofold.ir import Value, bind, current_builder

MANY_SCALARS = 1000
SCALARS = (bool, int, float, np.bool_, np.integer, np.floating)


def is_scalar(x: Any) -> bool:
    """A Python or NumPy scalar (NumPy scalars are weak here too, as Python's are)."""
    return isinstance(x, SCALARS)


def constant(data: Any, dtype: DType | None = None, near: tuple[Value, ...] = ()) -> Value:
    """A constant from anything NumPy understands, made where ``near`` lives: in its graph, or on its device.

    Lists of Python floats become float32, of ints int64; arrays keep their dtype.
    """
    array = as_numpy(data, dtype)
    builder = current_builder(near)
    if builder is not None:
        return builder.constant(array)
    device = next((v.device for v in near if hasattr(v, "device")), None)
    return bind("constant", value=array) if device is None else bind("constant", value=array, device=device)


def as_numpy(data: Any, dtype: DType | None = None) -> np.ndarray:
    """``data`` as a NumPy array of a supported dtype, by the default rules (Python floats: float32)."""
    array = np.asarray(data)
    if array.dtype.kind == "c":
        raise DtypeError(
            f"cannot make an array of {array.dtype} numbers: complex dtypes are not supported; take .real or .imag first"
        )
    if dtype is None:
        given = hasattr(data, "dtype")
        if (array.size == 0 and not given) or (not given and array.dtype == np.float64):
            dtype = as_dtype(np.float32)
        elif array.dtype.kind in "OUSMmV" and array.dtype.name not in ("bfloat16",):
            raise DtypeError(
                f"cannot make an array of {type(data).__name__} with elements of kind {array.dtype}; expected numbers"
            )
        else:
            dtype = as_dtype(array.dtype)
    return np.ascontiguousarray(array.astype(dtype.numpy, copy=False)) if array.ndim else array.astype(dtype.numpy)


def value(x: Any, near: tuple[Value, ...] = (), dtype: DType | None = None) -> Value:
    """``x`` as a value; a Python scalar takes ``dtype`` if given."""
    if isinstance(x, Value):
        return x
    if isinstance(x, Sym):
        return dim_value(x, dtype)
    return constant(x, dtype if is_scalar(x) else None, near)


def dim_value(dim: Dim, dtype: DType | None = None) -> Value:
    """A dimension as a 0-d value: a constant, or for a symbolic one a node that is known when the program runs."""
    dtype = dtype or as_dtype("int64")
    if isinstance(dim, Sym):
        return bind("dim_size", dim=dim, dtype=dtype)
    return constant(np.asarray(dim, dtype.numpy))


def cast(x: Value, dtype: Any) -> Value:
    """``x`` in another dtype (unchanged when it already is)."""
    dtype = as_dtype(dtype)
    return x if x.dtype is dtype else bind("cast", x, dtype=dtype)


def together(*xs: Any) -> tuple[Value, ...]:
    """All operands as values of one dtype: arrays promote by the standard, Python scalars adapt to them."""
    if _agree(xs):
        return xs
    arrays = tuple(x for x in xs if isinstance(x, Value))
    others = tuple(x for x in xs if not isinstance(x, Value) and not is_scalar(x) and not isinstance(x, Sym))
    if others:
        xs = tuple(x if isinstance(x, Value) or is_scalar(x) or isinstance(x, Sym) else value(x, arrays) for x in xs)
        arrays = tuple(x for x in xs if isinstance(x, Value))
    dtype: DType | None = None
    for x in arrays:
        dtype = x.dtype if dtype is None else promote(dtype, x.dtype)
    if dtype is None:
        dtype = scalar_dtype(xs[0], None)
        for x in xs[1:]:
            other = scalar_dtype(x, None)
            dtype = other if other.is_floating and not dtype.is_floating else dtype
    out = []
    for x in xs:
        if isinstance(x, Value):
            out.append(cast(x, dtype))
        elif isinstance(x, Sym):
            out.append(dim_value(x, dtype))
        else:
            out.append(_scalar(x, scalar_dtype(x, dtype), arrays))
    return tuple(out)


def _agree(xs: tuple[Any, ...]) -> bool:
    """Whether all are values of one dtype already: the usual case, and the quick one."""
    first = xs[0]
    if not isinstance(first, Value):
        return False
    dtype = first.spec.dtype
    for x in xs:  # noqa: SIM110 (a generator would cost as much as the op)
        if not isinstance(x, Value) or x.spec.dtype is not dtype:
            return False
    return True


_scalars: dict[Any, Value] = {}  # eager constants: values never change, so equal numbers share one


def _scalar(x: Any, dtype: DType, near: tuple[Value, ...]) -> Value:
    """A Python number as a value; eager ones are kept, as programs use the same few again and again."""
    if not near or current_builder(near) is not None:
        return constant(x, dtype, near)
    key = (x, math.copysign(1.0, x), dtype.name, near[0].device.name)  # type: ignore[attr-defined]
    known = _scalars.get(key)
    if known is None:
        if len(_scalars) >= MANY_SCALARS:
            _scalars.clear()
        known = _scalars[key] = constant(x, dtype, near)
    return known
