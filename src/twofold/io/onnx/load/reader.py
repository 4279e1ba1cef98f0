"""Bytes -> ModelProto, and TensorProto -> array. Everything is checked against the bytes really there first."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper

from twofold.base.errors import FormatError, UnsafeFileError, UnsupportedOpError
from twofold.io.onnx.common import from_onnx

LIMIT = 1 << 31  # a protobuf message holds less
MAX_RANK = 64


def read_model(path: str | os.PathLike) -> ModelProto:
    """The protobuf message of a file; FormatError if it is not one."""
    size = os.path.getsize(path)
    if size >= LIMIT:
        raise FormatError(
            f"{os.fspath(path)}: {size} bytes; an ONNX file holds less than 2 GiB (external data lies beside it)"
        )
    return parse_model(Path(path).read_bytes(), os.fspath(path))


def parse_model(data: bytes, what: str = "model") -> ModelProto:
    """The message in ``data``; FormatError if it does not parse or holds no graph."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"{what}: not an ONNX file: {error}") from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise FormatError(f"{what}: not an ONNX file: it holds no graph")
    return model


class TensorReader:
    """Reads tensors; ``folder`` is where external data may lie, or None if it is refused."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def __call__(self, tensor: TensorProto, what: str = "") -> np.ndarray:
        """The array, read-only where it can be; FormatError if the bytes there do not fit its shape."""
        what = what or f"tensor {tensor.name!r}"
        if tensor.data_type == TensorProto.STRING:
            raise UnsupportedOpError(f"{what}: tensors of strings are not supported")
        dtype = from_onnx(tensor.data_type, what)
        shape = tuple(tensor.dims)
        if len(shape) > MAX_RANK or any(d < 0 for d in shape):
            raise FormatError(f"{what}: impossible shape {shape}")
        count = math.prod(shape)
        if tensor.HasField("segment"):
            raise FormatError(f"{what}: segmented tensors are not supported")
        if tensor.data_location == TensorProto.EXTERNAL:
            raw: Any = self._external(tensor, what, count * dtype.itemsize)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
        else:
            return self._typed(tensor, what, count, shape)
        if len(raw) != count * dtype.itemsize:
            raise FormatError(f"{what}: {len(raw)} bytes; shape {shape} of {dtype.name} needs {count * dtype.itemsize}")
        stored = dtype.numpy.newbyteorder("<") if dtype.itemsize > 1 and dtype.name != "bfloat16" else dtype.numpy
        array = np.frombuffer(raw, np.uint8 if dtype.kind == "b" else stored)
        return _shaped((array != 0) if dtype.kind == "b" else array.astype(dtype.numpy, copy=False), shape, what)

    def _typed(self, tensor: TensorProto, what: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        there = max(len(getattr(tensor, name)) for name in fields)
        if there != count:
            raise FormatError(f"{what}: {there} elements; shape {shape} needs {count}")
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise FormatError(f"{what}: {error}") from None

    def _external(self, tensor: TensorProto, what: str, size: int) -> bytes:
        where = {e.key: e.value for e in tensor.external_data}
        location = where.get("location", "")
        if self.folder is None:
            raise UnsafeFileError(
                f"{what}: its numbers lie in another file ({location!r}); if you trust this model, load it with "
                "external_data=True, which reads files of the model's own folder only"
            )
        path = self._inside(location, what)
        try:
            offset, length = int(where.get("offset", 0)), int(where.get("length", size))
        except ValueError:
            raise FormatError(f"{what}: offset and length of external data are not numbers") from None
        try:
            with open(path, "rb") as stream:
                if offset < 0 or length != size or offset + length > os.fstat(stream.fileno()).st_size:
                    raise FormatError(
                        f"{what}: external data at {offset} of length {length}; expected {size} bytes inside {location!r}"
                    )
                stream.seek(offset)
                return stream.read(length)
        except OSError as error:
            raise FormatError(f"{what}: external data {_short(location)} cannot be read: {error.strerror}") from None

    def _inside(self, location: str, what: str) -> Path:
        """The file that a location names, if it is one in the folder, links followed."""
        assert self.folder is not None
        folder = self.folder.resolve()
        try:
            path = (folder / location).resolve()
            fine = path.is_relative_to(folder) and path.is_file() and not Path(location).is_absolute()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, bytes that no name has
            raise FormatError(f"{what}: external data {_short(location)} names no file: {_short(error)}") from None
        if not location or not fine:
            raise UnsafeFileError(f"{what}: external data {_short(location)} is not a file inside {folder}")
        return path


def _short(text: object) -> str:
    """What a file says, for an error that one can read."""
    shown = ascii(text) if isinstance(text, str) else ascii(str(text))[1:-1]
    return shown if len(shown) <= 120 else f"{shown[:100]}... ({len(shown)} characters)"


def _shaped(array: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{what}: impossible shape {shape}: {error}") from None
