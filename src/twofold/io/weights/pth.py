"""PyTorch's two file formats, read without torch and without running pickled code.

* **zip** (since 1.6): an archive with ``<stem>/data.pkl`` and one entry ``<stem>/data/<key>`` per storage.
* **legacy**: four pickles (magic, protocol 1001, system, the object), the pickled list of storage keys, then for each
  key an int64 count and the raw little-endian elements.

Either gives the unpickled tree with ``TensorRef`` leaves, and a function that turns a leaf into an array.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from twofold.base.errors import FormatError, UnsafeFileError
from twofold.io.weights import machine, zipdir
from twofold.io.weights.refs import StorageRef, TensorRef, materialize, numpy_dtype
from twofold.io.weights.source import ByteSource

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # pickled, in any protocol, at the start of the file
LEGACY_PROTOCOL = 1001


class Unpickled(NamedTuple):
    """The tree a file holds, and ``array(tensor, what)``, which reads one of its tensors."""

    tree: Any
    array: Callable[[TensorRef, str], np.ndarray]


def read_zip(source: ByteSource, verify: bool = True) -> Unpickled:
    """Open a file of the zip format; storages are read when first asked for and shared by their views."""
    entries = zipdir.read_directory(source)
    stem = _stem(entries)
    described = entries[f"{stem}/data.pkl"]
    if described.size > machine.MAX_PICKLE:
        raise UnsafeFileError(f"data.pkl has {described.size} bytes; weight files need at most {machine.MAX_PICKLE}")
    tree, _, _ = machine.run(zipdir.read_entry(source, described, verify).tobytes())
    swapped = _byte_order(source, entries.get(f"{stem}/byteorder")) != sys.byteorder
    cache: dict[tuple[str, int], np.ndarray] = {}

    def array(tensor: TensorRef, what: str) -> np.ndarray:
        storage, width = tensor.storage, numpy_dtype(tensor.dtype).itemsize
        slot = (storage.key, width if swapped else 0)
        if slot not in cache:
            content = _storage(source, entries.get(f"{stem}/data/{storage.key}"), storage, verify)
            cache[slot] = _swap(content, width) if swapped else content
        return materialize(tensor, cache[slot], what)

    return Unpickled(tree, array)


def _stem(entries: dict[str, zipdir.Entry]) -> str:
    stems = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.partition("/")[2].startswith(("code/", "constants.pkl")) for name in entries):
        raise UnsafeFileError("the file is a TorchScript program (code), not weights; save model.state_dict() instead")
    if len(stems) != 1:
        raise FormatError(f"the archive holds {len(stems)} files named */data.pkl, expected one: it is no PyTorch file")
    return stems[0]


def _byte_order(source: ByteSource, entry: zipdir.Entry | None) -> str:
    order = "little" if entry is None else zipdir.read_entry(source, entry).tobytes()[:16].decode("latin-1").strip()
    if order not in ("little", "big"):
        raise FormatError(f"the archive's byteorder is {order!r}; expected 'little' or 'big'")
    return order


def _storage(source: ByteSource, entry: zipdir.Entry | None, storage: StorageRef, verify: bool) -> np.ndarray:
    if entry is None:
        raise FormatError(f"the archive has no data for storage {storage.key[:40]!r}")
    size = storage.whole * storage.itemsize
    if entry.size != size:
        raise FormatError(f"storage {storage.key[:40]!r} should have {size} bytes, the archive has {entry.size}")
    return zipdir.read_entry(source, entry, verify)


def _swap(content: np.ndarray, width: int) -> np.ndarray:
    """The same elements of ``width`` bytes in the other byte order."""
    if content.size % width:
        raise FormatError(f"a storage of {content.size} bytes has no whole number of {width}-byte elements")
    return content.reshape(-1, width)[:, ::-1].copy().reshape(-1)


def looks_legacy(source: ByteSource) -> bool:
    """Whether the file starts with the pickled magic number (which protocol 4 and later put inside a frame)."""
    return source.data[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") + b"." in source.data[:32]


def read_legacy(source: ByteSource) -> Unpickled:
    """Open a file of the legacy format."""
    window = source.bytes(0, min(source.size, machine.MAX_PICKLE), "the pickles")
    magic, _, place = machine.run(window)
    protocol, _, place = machine.run(window, place)
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise FormatError(f"the file's magic number or its protocol (expected {LEGACY_PROTOCOL}) is wrong")
    _, _, place = machine.run(window, place)  # the writer's system: tells nothing that is needed
    tree, storages, place = machine.run(window, place)
    keys, _, place = machine.run(window, place)
    places = _legacy_places(source, keys, storages, place)
    cache: dict[str, np.ndarray] = {}

    def array(tensor: TensorRef, what: str) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in places:
            raise FormatError(f"{what}: the file has no data for storage {storage.key[:40]!r}")
        if storage.key not in cache:
            size = storage.whole * storage.itemsize
            content = source.array(places[storage.key], size, f"storage {storage.key[:40]!r}")
            cache[storage.key] = content if sys.byteorder == "little" else _swap(content, storage.itemsize)
        return materialize(tensor, cache[storage.key], what)

    return Unpickled(tree, array)


def _legacy_places(source: ByteSource, keys: Any, storages: dict[str, StorageRef], place: int) -> dict[str, int]:
    """Where each storage's elements start: the file is walked by the counts it repeats, to its very end."""
    places: dict[str, int] = {}
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise FormatError("the list of storage keys is no list of strings")
    for key in keys:
        if key in places or key not in storages:
            raise FormatError(f"storage {key[:40]!r} is listed twice, or is used by no tensor")
        storage, what = storages[key], f"storage {key[:40]!r}"
        count = int.from_bytes(source.bytes(place, 8, what), "little", signed=True)
        if count != storage.whole:
            raise FormatError(f"{what} has {count} elements; its tensors expect {storage.whole}")
        places[key] = place + 8
        source.check(place + 8, count * storage.itemsize, what)
        place += 8 + count * storage.itemsize
    if place != source.size:
        raise FormatError(f"the file has {source.size - place} bytes after its last storage")
    return places
