"""Write a PyTorch weight file (zip format) that ``torch.load(path, weights_only=True)`` reads, without torch.

The pickle is written instruction by instruction: a dict whose values are calls of ``torch._utils._rebuild_tensor_v2``
(``_v3`` for dtypes without a storage class of their own) on storages named by persistent ids.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from twofold.base import dtypes
from twofold.base.errors import FormatError
from twofold.base.files import atomic_write
from twofold.io.weights.names import STORAGES
from twofold.io.weights.safetensors import raw_bytes

STEM = "archive"
LOCAL_HEADER = 30  # bytes of an entry's header before its name
ALIGNMENT = 64  # of a storage inside the file, as PyTorch aligns them
PADDING_FIELD = 0x4246  # id of the ZIP extra field that makes room
EPOCH = (1980, 1, 1, 0, 0, 0)  # no clock in the file: the same weights give the same bytes
_STORAGE_OF = {dtype: kind for kind, dtype in STORAGES.items() if dtype in dtypes.BY_NAME}


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write NumPy arrays (bfloat16 through ml_dtypes) to ``path``, atomically, in PyTorch's zip format.

    >>> write_pth("w.pth", {"weight": np.zeros((2, 3), np.float32)})    # then: torch.load("w.pth")["weight"]

    Raises DtypeError for dtypes without a counterpart, FormatError for names that are not strings.
    """
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    if not all(isinstance(name, str) for name in arrays):
        raise FormatError("tensor names must be strings")
    with atomic_write(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        _entry(archive, "data.pkl", pickled(arrays))
        _entry(archive, "byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            _entry(archive, f"data/{i}", raw_bytes(array))
        _entry(archive, "version", b"3\n")


def _entry(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Store one entry, its content aligned to 64 bytes by an extra field of zeros in its header."""
    info = zipfile.ZipInfo(f"{STEM}/{name}", EPOCH)
    large = len(content) >= zipfile.ZIP64_LIMIT
    plain = archive.start_dir + LOCAL_HEADER + len(info.filename) + 4 + (20 if large else 0)
    gap = -plain % ALIGNMENT
    info.extra = struct.pack("<HH", PADDING_FIELD, gap) + bytes(gap)
    info.file_size = len(content)
    with archive.open(info, "w", force_zip64=large) as stream:
        stream.write(content)


def pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle (protocol 2) that describes ``arrays``; array number i has its bytes in storage "i"."""
    rows = b"".join(_text(name) + _tensor(array, i) for i, (name, array) in enumerate(arrays.items()))
    return b"\x80\x02" + b"}(" + rows + b"u."


def _tensor(array: np.ndarray, number: int) -> bytes:
    name = dtypes.as_dtype(array.dtype).name
    typed = name in _STORAGE_OF
    kind = _global("torch", _STORAGE_OF[name]) if typed else _global("torch.storage", "UntypedStorage")
    count = array.size if typed else array.nbytes
    storage = b"(" + _text("storage") + kind + _text(str(number)) + _text("cpu") + _integer(count) + b"tQ"
    strides = [int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim)]
    layout = _integer(0) + _tuple(array.shape) + _tuple(strides)
    hooks = b"\x89" + _global("collections", "OrderedDict") + b")R"  # requires_grad=False, no hooks
    rebuild = _global("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    return rebuild + b"(" + storage + layout + hooks + (b"" if typed else _global("torch", name)) + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values) -> bytes:
    return b"(" + b"".join(map(_integer, map(int, values))) + b"t"
