"""``.stablehlo`` files: functions without state for XLA's compilers. See ``twofold.backends.xla.stablehlo``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from twofold.backends import Device
from twofold.backends import device as find_device
from twofold.backends.xla.backend import XlaBackend
from twofold.backends.xla.stablehlo import PLATFORMS, deserialize, serialize
from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError, FormatError, ShapeError
from twofold.base.files import atomic_write
from twofold.ir import Spec
from twofold.static.runner import as_array
from twofold.tensor.eager import Array
from twofold.tensor.tensor import Tensor


def write(program: Any, path: str | os.PathLike, *, platforms: Sequence[str] = PLATFORMS) -> None:
    """Write a program; ``platforms``: what it is lowered for, of "cpu", "cuda", "rocm", "tpu"."""
    data = serialize(program.graph, program.state, platforms)
    with atomic_write(path) as file:
        file.write(data)


def read(path: str | os.PathLike, *, devices: Any = "xla:cpu") -> StableHLOFunction:
    """The function in a file, for one device of XLA. FormatError for a broken file."""
    try:
        return StableHLOFunction(Path(path).read_bytes(), find_device(devices), Path(path).stem)
    except FormatError as error:
        error.args = (f"{os.fspath(path)}: {error.args[0]}",)
        raise


class StableHLOFunction:
    """A function from a file: called with arrays by position, it returns a tensor, or a tuple of them."""

    def __init__(self, data: bytes, device: Device, name: str = "program"):
        if device.kind not in ("gpu", "tpu", "xla"):
            raise ArgumentError(f"StableHLO programs run on XLA's devices ('xla:cpu', 'gpu', 'tpu'); got {device}")
        self.device, self.backend, self.name = device, cast(XlaBackend, device.backend), name
        self._function, self.inputs = deserialize(data)

    def __call__(self, *args: Any) -> Any:
        if len(args) != len(self.inputs):
            raise ShapeError(f"{self.name}: got {len(args)} arguments, expected {len(self.inputs)}")
        arrays = []
        for i, (x, wanted) in enumerate(zip(args, self.inputs)):
            array = as_array(x, Spec((), as_dtype(wanted.dtype)))
            fixed = [(have, want) for have, want in zip(array.shape, wanted.shape) if isinstance(want, int)]
            if array.dtype is not as_dtype(wanted.dtype) or array.ndim != wanted.ndim or any(h != w for h, w in fixed):
                raise ShapeError(f"{self.name}: argument {i} is {array.spec}, expected {wanted.str_short()}")
            here = array.device == self.device
            arrays.append(array.buffer if here else self.backend.put(array.numpy(), self.device))
        results = self.backend.call(self._function, arrays, self.name)
        tensors = [Tensor(Array(Spec(tuple(r.shape), as_dtype(r.dtype)), r, self.device)) for r in results]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def __repr__(self) -> str:
        return f"<StableHLOFunction {self.name}({', '.join(a.str_short() for a in self.inputs)})>"
