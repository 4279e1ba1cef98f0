"""The IDX format of the MNIST family: two zero bytes, an element type, the number of axes, sizes, elements.

All numbers are big-endian (Y. LeCun, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import math
import os
import struct

import numpy as np

from twofold.base.errors import ArgumentError, FormatError
from twofold.base.files import atomic_write
from twofold.data.streams import open_bounded

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # code -> NumPy
MAX_AXES = 8


def read_idx(path: str | os.PathLike, *, ndim: int | None = None, max_bytes: int = 1 << 31) -> np.ndarray:
    """The array of an IDX file, plain or gzip, in native byte order.

    FormatError names the file and what is wrong: another format, another number of axes than ``ndim``, truncated, bytes
    left over, or more than ``max_bytes``.
    """
    with open_bounded(path, max_bytes + 4 + 4 * MAX_AXES) as stream:
        zeros, code, axes = struct.unpack(">HBB", stream.exactly(4, "the IDX header"))
        if zeros != 0 or code not in TYPES or not 1 <= axes <= MAX_AXES:
            raise FormatError(
                f"{path}: begins with {struct.pack('>HBB', zeros, code, axes).hex(' ')}; expected an IDX header "
                f"(00 00, a type from {' '.join(f'{c:02x}' for c in TYPES)}, 1 to {MAX_AXES} axes)"
            )
        if ndim is not None and axes != ndim:
            raise FormatError(f"{path}: IDX array has {axes} axes; expected {ndim}")
        shape = struct.unpack(f">{axes}I", stream.exactly(4 * axes, "the IDX sizes"))
        dtype = np.dtype(TYPES[code])
        size = math.prod(shape) * dtype.itemsize
        if size > max_bytes:
            raise FormatError(f"{path}: IDX header claims {shape}, {size:,} bytes; at most {max_bytes:,} are read")
        data = stream.exactly(size, f"IDX shape {shape}")
        stream.end()
    if 0 in shape:
        raise FormatError(f"{path}: IDX shape {shape} is empty; expected at least one element")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def write_idx(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as a plain IDX file, atomically. ArgumentError for a dtype IDX does not have."""
    array = np.asarray(array)
    codes = {np.dtype(t).newbyteorder("="): code for code, t in TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None or not 1 <= array.ndim <= MAX_AXES:
        raise ArgumentError(
            f"IDX has no form for {array.dtype} with shape {array.shape}; "
            f"expected 1 to {MAX_AXES} axes of {', '.join(map(str, codes))}"
        )
    with atomic_write(path) as stream:
        stream.write(struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape))
        stream.write(np.ascontiguousarray(array.astype(TYPES[code])).tobytes())
