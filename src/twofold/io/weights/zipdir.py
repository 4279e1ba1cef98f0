"""The directory of a ZIP file, read strictly: enough for ``.pth``, nothing is ever extracted to a path.

Layout (PKWARE APPNOTE 6.3): entries, then the central directory (46-byte records), then the end record (22 bytes), with
a ZIP64 end record and its locator in front when sizes pass 32 bits.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np

from twofold.base.errors import FormatError, UnsafeFileError
from twofold.io.weights.source import ByteSource

MAX_ENTRIES = 200_000
MAX_EXPANSION = 8  # trained weights hardly compress; what unfolds further is a bomb (or zeros: store it uncompressed)
STORED, DEFLATED = 0, 8
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_RECORD, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")


class Entry(NamedTuple):
    """One file of the archive: its method, checksum (0: not recorded), packed and unpacked size, and place."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    header: int


def read_directory(source: ByteSource) -> dict[str, Entry]:
    """All entries by name; duplicates, encryption, overlaps and bombs are refused."""
    start, length, count = _find_directory(source)
    if count > MAX_ENTRIES:
        raise UnsafeFileError(f"the archive lists {count} entries; weight files have at most {MAX_ENTRIES}")
    raw, entries, place = source.bytes(start, length, "the archive's directory"), {}, 0
    for _ in range(count):
        entry, place = _entry(raw, place)
        if entry.name in entries:
            raise UnsafeFileError(f"the archive holds {entry.name[:100]!r} twice")
        entries[entry.name] = entry
    if place != length:
        raise FormatError(f"the archive's directory has {length} bytes, its entries fill {place}")
    _check_sizes(entries, source.size)
    return entries


def _find_directory(source: ByteSource) -> tuple[int, int, int]:
    """Start, length and entry count of the central directory."""
    end = source.data.rfind(b"PK\x05\x06", max(0, source.size - _END.size - 0xFFFF))
    if end < 0:
        raise FormatError("the archive has no end record; the file is truncated")
    fields = _END.unpack(source.bytes(end, _END.size, "the archive's end record"))
    count, length, start = fields[4], fields[5], fields[6]
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):
        locator = _LOCATOR.unpack(source.bytes(end - _LOCATOR.size, _LOCATOR.size, "the archive's ZIP64 locator"))
        end64 = _END64.unpack(source.bytes(locator[2], _END64.size, "the archive's ZIP64 end record"))
        if locator[0] != b"PK\x06\x07" or end64[0] != b"PK\x06\x06":
            raise FormatError("the archive's ZIP64 end record is not where its locator says")
        count, length, start = end64[7], end64[8], end64[9]
    source.check(start, length, "the archive's directory")
    return start, length, count


def _entry(raw: bytes, place: int) -> tuple[Entry, int]:
    """The entry whose record starts at ``place`` of the directory, and the place after it."""
    if place + _RECORD.size > len(raw):
        raise FormatError("the archive's directory ends within an entry")
    mark, _, _, flags, method, _, _, crc, packed, size, names, extras, notes, _, _, _, header = _RECORD.unpack_from(
        raw, place
    )
    after_name = place + _RECORD.size + names
    following = after_name + extras + notes
    if mark != b"PK\x01\x02" or following > len(raw):
        raise FormatError("an entry of the archive's directory is corrupt")
    name = raw[place + _RECORD.size : after_name].decode("utf-8" if flags & 0x800 else "cp437", "replace")
    if flags & 1 or method not in (STORED, DEFLATED):
        raise UnsafeFileError(f"archive entry {name[:100]!r} is encrypted or packed by method {method}")
    wide = _zip64_extra(raw[after_name : after_name + extras], [size, packed, header])
    return Entry(name, method, crc, wide[1], wide[0], wide[2]), following


def _zip64_extra(extra: bytes, values: list[int]) -> list[int]:
    """``values`` with those that read 0xFFFFFFFF replaced from the ZIP64 extra field (id 1)."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            body = extra[4 : 4 + length]
            for i, value in enumerate(values):
                if value == 0xFFFFFFFF and len(body) >= 8:
                    values[i], body = int.from_bytes(body[:8], "little"), body[8:]
        extra = extra[4 + length :]
    return values


def _check_sizes(entries: dict[str, Entry], file_size: int) -> None:
    stored = sum(e.size for e in entries.values() if e.method == STORED)
    packed = sum(e.size for e in entries.values() if e.method == DEFLATED)
    if stored > file_size:
        raise FormatError(f"the archive's entries take {stored} bytes of a file of {file_size}; they overlap or lie")
    if packed > MAX_EXPANSION * file_size + (1 << 16):
        raise UnsafeFileError(
            f"the archive would unpack from {file_size} to {packed} bytes, more than {MAX_EXPANSION} times; "
            "PyTorch stores weights uncompressed: repack it with `zip -0`"
        )


def read_entry(source: ByteSource, entry: Entry, verify: bool = True) -> np.ndarray:
    """The entry's content as uint8[n]; with ``verify`` its CRC-32 is compared where one is recorded."""
    what = f"archive entry {entry.name[:100]!r}"
    header = _LOCAL.unpack(source.bytes(entry.header, _LOCAL.size, what))
    if header[0] != b"PK\x03\x04":
        raise FormatError(f"{what} is not where the directory says")
    start = entry.header + _LOCAL.size + header[9] + header[10]
    if entry.method == STORED and entry.packed != entry.size:
        raise FormatError(f"{what} is stored as it is, yet has two sizes: {entry.packed} and {entry.size}")
    content = source.array(start, entry.packed, what)
    if entry.method == DEFLATED:
        content = _inflate(content, entry.size, what)
    if verify and entry.crc and zlib.crc32(content.data) != entry.crc:
        raise FormatError(
            f"{what} is damaged: its checksum differs; fetch the file again "
            "(verify=False reads files whose checksums were never computed)"
        )
    return content


def _inflate(packed: np.ndarray, size: int, what: str) -> np.ndarray:
    engine = zlib.decompressobj(-15)
    try:
        plain = engine.decompress(packed.data, size + 1)
    except zlib.error as error:
        raise FormatError(f"{what} does not unpack: {error}") from None
    if len(plain) != size:
        raise FormatError(f"{what} unpacks to another size than the {size} bytes it declares")
    return np.frombuffer(bytearray(plain), np.uint8)
