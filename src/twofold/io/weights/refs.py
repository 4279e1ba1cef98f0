"""What a PyTorch pickle describes: names, storages and tensors, as plain records without any data.

Unpickling gives a tree of these; the bytes are looked at afterwards, by ``materialize``, with every number checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from twofold.base import dtypes
from twofold.base.errors import FormatError, UnsafeFileError

MAX_DIMS = 32  # NumPy's own limit was 32 for decades; no weight comes near


class Name(NamedTuple):
    """A global of the pickle that is on the list: ``build`` makes its value when called, else ``value``."""

    path: str
    build: Callable[..., Any] | None = None
    value: Any = None


class StorageRef(NamedTuple):
    """Elements [offset, offset + size) of the storage kept under ``key``, which has ``whole`` elements in all.

    ``dtype`` is a NumPy name, or "bytes" where the storage is untyped and its elements are bytes.
    """

    key: str
    dtype: str
    whole: int
    offset: int
    size: int

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype == "bytes" else numpy_dtype(self.dtype).itemsize


class TensorRef(NamedTuple):
    """A strided window on a storage; offset and strides count elements of ``dtype``."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes its values take once copied out."""
        total = numpy_dtype(self.dtype).itemsize
        for dim in self.shape:
            total *= dim
        return total


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a name from a file; FormatError for one that twofold has not (complex, quantised, float8)."""
    if name not in dtypes.BY_NAME:
        raise FormatError(f"dtype {name} is not supported; expected one of {', '.join(dtypes.BY_NAME)}")
    return dtypes.BY_NAME[name].numpy


def natural(value: Any, what: str) -> int:
    """``value`` if it is an int in [0, 2**63); else FormatError."""
    if type(value) is not int or not 0 <= value < 2**63:
        shown = hex(value)[:40] if type(value) is int else type(value).__name__
        raise FormatError(f"{what} should be an integer from 0 to 2**63 - 1, got {shown}")
    return value


def naturals(values: Any, what: str) -> tuple[int, ...]:
    """A tuple or list of at most 32 such integers."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMS:
        raise FormatError(f"{what} should be a tuple of at most {MAX_DIMS} integers")
    return tuple(natural(v, what) for v in values)


def check_total(tensors: Iterable[tuple[str, TensorRef]], file_size: int) -> None:
    """Refuse a file whose tensors, expanded or repeated, would unfold to far more bytes than the file holds."""
    total, limit = 0, 4 * file_size + (1 << 20)
    for name, tensor in tensors:
        total += tensor.nbytes
        if total > limit:
            raise UnsafeFileError(
                f"tensor {name!r} of shape {tensor.shape} brings the total to {total} bytes, the file has {file_size}: "
                "expanded (stride 0) or repeated tensors are refused at this size; save contiguous copies"
            )


def materialize(tensor: TensorRef, storage: np.ndarray, what: str) -> np.ndarray:
    """The tensor as a strided view of its storage's bytes (uint8[n], native byte order), bounds checked first."""
    dtype = numpy_dtype(tensor.dtype)
    if 0 in tensor.shape:
        return empty(tensor.shape, dtype, what)
    last = tensor.offset + sum((dim - 1) * step for dim, step in zip(tensor.shape, tensor.strides))
    start = tensor.storage.offset * tensor.storage.itemsize
    size = tensor.storage.size * tensor.storage.itemsize
    if start + size > storage.size or (last + 1) * dtype.itemsize > size:
        raise FormatError(
            f"{what}: shape {tensor.shape}, strides {tensor.strides}, offset {tensor.offset} of {dtype} reach element "
            f"{last}, outside its storage {tensor.storage.key!r} of {size} bytes"
        )
    window = storage[start + tensor.offset * dtype.itemsize : start + (last + 1) * dtype.itemsize]
    if dtype.kind == "b":
        check_booleans(window, what)
    steps = tuple(step * dtype.itemsize if dim > 1 else 0 for dim, step in zip(tensor.shape, tensor.strides))
    return np.lib.stride_tricks.as_strided(window.view(dtype), tensor.shape, steps)


def empty(shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    """An array without elements; FormatError where the other dims are beyond what NumPy can describe."""
    try:
        return np.empty(shape, dtype)
    except ValueError:
        raise FormatError(f"{what}: shape {shape} is absurd") from None


def check_booleans(raw: np.ndarray, what: str) -> None:
    """Bytes other than 0 and 1 are no booleans, and NumPy would compute nonsense with them."""
    if raw.size and raw.max() > 1:
        raise FormatError(f"{what}: a boolean byte is {int(raw.max())}; expected 0 or 1")
