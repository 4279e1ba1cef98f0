"""Data type functions of the array API standard, and what the namespace can do (``__array_namespace_info__``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.backends import KINDS as DEVICE_KINDS
from twofold.backends import Device, default_device
from twofold.base.dtypes import ALL, DType, as_dtype, float32, int64, is_kind, promote, scalar_dtype
from twofold.base.dtypes import KINDS as DTYPE_KINDS
from twofold.base.errors import ArgumentError, DeviceError, DtypeError
from twofold.ops import is_scalar
from twofold.tensor.tensor import Tensor


@dataclass(frozen=True)
class FloatInfo:
    """Limits of a floating dtype, as Python numbers."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class IntInfo:
    """Limits of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


def _dtype_of(x: Any) -> DType:
    return x.dtype if isinstance(x, Tensor) else as_dtype(x)


def finfo(type: Any, /) -> FloatInfo:
    """Limits of a floating dtype, or of a tensor's."""
    dtype = _dtype_of(type)
    if not dtype.is_floating:
        raise DtypeError(f"finfo: dtype {dtype.name}; expected a floating dtype; use tw.iinfo for integers")
    info: Any
    if dtype.name == "bfloat16":
        import ml_dtypes

        info = ml_dtypes.finfo("bfloat16")
    else:
        info = np.finfo(dtype.numpy)
    return FloatInfo(dtype.bits, float(info.eps), float(info.max), float(info.min), float(info.smallest_normal), dtype)


def iinfo(type: Any, /) -> IntInfo:
    """Limits of an integer dtype, or of a tensor's."""
    dtype = _dtype_of(type)
    if not dtype.is_integer:
        raise DtypeError(f"iinfo: dtype {dtype.name}; expected an integer dtype; use tw.finfo for floats")
    info = np.iinfo(dtype.numpy)
    return IntInfo(dtype.bits, int(info.max), int(info.min), dtype)


def isdtype(dtype: Any, kind: str | DType | tuple[str | DType, ...]) -> bool:
    """Whether a dtype is of a kind: "bool", "signed integer", "unsigned integer", "integral", "real floating",
    "complex floating", "numeric", a dtype, or a tuple of these."""
    return is_kind(as_dtype(dtype), kind)


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype in which tensors, dtypes and Python scalars meet; DtypeError where the standard defines none."""
    dtypes = [_dtype_of(x) for x in arrays_and_dtypes if not is_scalar(x)]
    if not dtypes:
        raise ArgumentError("result_type: expected at least one tensor or dtype")
    out = dtypes[0]
    for dtype in dtypes[1:]:
        out = promote(out, dtype)
    for x in arrays_and_dtypes:
        if is_scalar(x):
            scalar_dtype(x, out)
    return out


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether promotion leads from one dtype (or tensor's dtype) to the other."""
    target = as_dtype(to)
    try:
        return promote(_dtype_of(from_), target) is target
    except DtypeError:
        return False


class NamespaceInfo:
    """What ``__array_namespace_info__`` returns."""

    def capabilities(self) -> dict[str, Any]:
        """What the namespace can do beyond the required: masks and data-dependent shapes work eagerly."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> Device:
        """Where arrays go unless told otherwise."""
        return default_device()

    def devices(self) -> list[Device]:
        """The devices present."""
        found: dict[str, Device] = {}
        for kind in DEVICE_KINDS:
            try:
                found |= {d.name: d for d in Device(kind).backend.devices()}
            except (DeviceError, ImportError):
                continue
        return list(found.values())

    def default_dtypes(self, *, device: Any = None) -> dict[str, DType]:
        """Dtypes that Python numbers become."""
        return {"real floating": float32, "integral": int64, "indexing": int64}

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, DType]:
        """The standard's dtypes that are supported, by name, of one kind or all (``float16`` and ``bfloat16`` are extra)."""
        if kind is not None:
            for one in kind if isinstance(kind, tuple) else (kind,):
                if one not in DTYPE_KINDS:
                    raise ArgumentError(f"dtypes: kind {one!r}; expected one of {', '.join(map(repr, DTYPE_KINDS))}")
        return {d.name: d for d in ALL if d.name not in ("bfloat16", "float16") and (kind is None or is_kind(d, kind))}


def namespace_info() -> NamespaceInfo:
    """The array API standard's inspection object."""
    return NamespaceInfo()
