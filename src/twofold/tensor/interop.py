"""Exchange with other array libraries: DLPack both ways, and ``__array_namespace__``.

On a CPU nothing is copied: both sides see the same memory. Tensors are values that never change, so a consumer that
writes into such memory does so at its own risk.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from twofold.backends import device as find_device
from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError, DtypeError
from twofold.ir import Spec
from twofold.tensor.eager import Array
from twofold.tensor.tensor import Tensor

CPU = (1, 0)  # DLPack's kDLCPU
_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")


def array_namespace(self: Tensor, /, *, api_version: str | None = None) -> Any:
    """The module with the array API standard's functions: ``twofold``."""
    if api_version is not None and api_version not in _VERSIONS:
        raise ArgumentError(f"array API version {api_version!r}; expected one of {', '.join(_VERSIONS)}")
    return sys.modules["twofold"]


def dlpack_device(self: Tensor) -> tuple[int, int]:
    """DLPack's (device type, index)."""
    array = self._array("__dlpack_device__")
    return CPU if isinstance(array.buffer, np.ndarray) else array.buffer.__dlpack_device__()


def dlpack(
    self: Tensor, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
) -> Any:
    """A DLPack capsule of the numbers, without copying where they are on the asked device."""
    array = self._array("__dlpack__")
    if self.dtype.name == "bfloat16" and isinstance(array.buffer, np.ndarray):
        raise BufferError(
            "DLPack: bfloat16 on the CPU goes through NumPy, which cannot export it; use x.float() or x.numpy()"
        )
    if not isinstance(array.buffer, np.ndarray):
        return array.buffer.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)
    buffer = array.buffer
    if not buffer.flags.writeable and (max_version is None or max_version < (1, 0)):
        if copy is False:
            raise BufferError("DLPack: this memory is read-only, which DLPack before 1.0 cannot say; allow a copy")
        buffer = buffer.copy()
    return buffer.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor of any object with ``__dlpack__`` (NumPy, PyTorch, JAX, CuPy arrays), sharing its memory on a CPU.

    >>> import numpy as np, twofold as tw
    >>> a = np.arange(3.0)
    >>> np.shares_memory(tw.from_dlpack(a).numpy(), a)
    True
    """
    if not hasattr(x, "__dlpack__"):
        raise ArgumentError(f"from_dlpack: a {type(x).__name__} has no __dlpack__; use tw.asarray")
    try:
        array = np.from_dlpack(x, copy=copy)
    except (BufferError, RuntimeError) as error:
        raise DtypeError(
            f"from_dlpack: {type(x).__name__} cannot be taken over on the CPU: {error}; move or cast it first"
        ) from error
    where = find_device("cpu")
    out = Tensor(Array(Spec(array.shape, as_dtype(array.dtype)), where.backend.put(array, where), where))
    return out if device is None else out.to(device=device)


Tensor.__array_namespace__ = array_namespace  # type: ignore[attr-defined]
Tensor.__dlpack__ = dlpack  # type: ignore[attr-defined]
Tensor.__dlpack_device__ = dlpack_device  # type: ignore[attr-defined]
