"""safetensors: 8 bytes of header length (little-endian), a JSON header, then the tensors' bytes, row-major.

Header: ``{name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {str: str}}``; offsets
count from the end of the header and must cover the rest of the file without hole or overlap.
(https://huggingface.co/docs/safetensors)
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from twofold.base import dtypes
from twofold.base.errors import FormatError, UnsafeFileError
from twofold.base.files import atomic_write
from twofold.io.weights.refs import check_booleans, empty, naturals, numpy_dtype
from twofold.io.weights.source import ByteSource

MAX_HEADER = 100_000_000  # the format's own limit
CODES = {d.name: f"{d.kind.upper()}{d.bits}" for d in dtypes.ALL} | {"bfloat16": "BF16", "bool": "BOOL"}
NAMES = {code: name for name, code in CODES.items()}
METADATA = "__metadata__"


def looks_like(source: ByteSource) -> bool:
    """Whether the file starts as a safetensors file does: a header length that fits, then ``{``."""
    return source.size > 8 and source.data[8:9] == b"{" and _header_length(source) <= source.size - 8


def _header_length(source: ByteSource) -> int:
    return int.from_bytes(source.bytes(0, 8, "the header length"), "little")


def read(source: ByteSource) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors, and the metadata. Large files give views of the mapped file, writable and copy-on-write."""
    header, start = _header(source)
    metadata = _metadata(header.pop(METADATA, {}))
    rows = {name: _row(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(rows.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise FormatError(f"tensor {name[:100]!r} starts at byte {begin} of the data, the one before ends at {end}")
        end = stop
    if start + end != source.size:
        raise FormatError(f"the tensors take {end} bytes, but {source.size - start} follow the header")
    return {name: _tensor(source, start, name, row) for name, row in rows.items()}, metadata


def _header(source: ByteSource) -> tuple[dict[str, Any], int]:
    length = _header_length(source)
    if length > MAX_HEADER:
        raise UnsafeFileError(f"the header claims {length} bytes; the format allows {MAX_HEADER}")
    text = source.bytes(8, length, "the header")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header is not the JSON it should be: {error}") from None
    if not isinstance(header, dict):
        raise FormatError("the header is no JSON object")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("the header names something twice")
    return result


def _no_constants(text: str) -> None:
    raise FormatError(f"the header holds {text}")


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise FormatError(f"{METADATA} should map strings to strings")
    return found


def _row(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one header entry."""
    what = f"tensor {name[:100]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what}: expected an object with dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in NAMES:
        raise FormatError(
            f"{what}: dtype {str(entry['dtype'])[:40]!r} is not supported; expected one of {', '.join(NAMES)}"
        )
    dtype = numpy_dtype(NAMES[entry["dtype"]])
    shape, offsets = (
        naturals(entry["shape"], f"{what}: shape"),
        naturals(entry["data_offsets"], f"{what}: data_offsets"),
    )
    size = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise FormatError(f"{what}: shape {shape} of {dtype} takes {size} bytes, its data_offsets are {offsets}")
    return dtype, shape, *offsets


def _tensor(source: ByteSource, start: int, name: str, row: tuple[np.dtype, tuple[int, ...], int, int]) -> np.ndarray:
    (dtype, shape, begin, end), what = row, f"tensor {name[:100]!r}"
    if begin == end:
        return empty(shape, dtype, what)
    raw = source.array(start + begin, end - begin, what)
    if dtype.kind == "b":
        check_booleans(raw, what)
    values = raw.view(dtype)
    return (values if sys.byteorder == "little" else values.byteswap()).reshape(shape)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` (NumPy arrays, bfloat16 through ml_dtypes) to ``path``, atomically.

    >>> write_safetensors("w.safetensors", {"weight": np.zeros((2, 3), np.float32)}, {"made by": "hand"})

    Raises DtypeError for dtypes without a counterpart, FormatError for names that are not usable.
    """
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    if not all(isinstance(name, str) and name != METADATA for name in arrays):
        raise FormatError(f"tensor names must be strings other than {METADATA!r}")
    header: dict[str, Any] = {METADATA: _metadata(dict(metadata))} if metadata else {}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that each is aligned
    end = 0
    for name in order:
        begin, end = end, end + arrays[name].nbytes
        code = CODES[dtypes.as_dtype(arrays[name].dtype).name]
        header[name] = {"dtype": code, "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            stream.write(raw_bytes(arrays[name]))


def raw_bytes(array: np.ndarray) -> memoryview:
    """The array's bytes, row-major and little-endian, copied only where they are not so already."""
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.byteswap()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
