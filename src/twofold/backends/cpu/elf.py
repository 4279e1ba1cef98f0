"""Objects loaded without LLVM: what the object cache holds is simple enough that a page of Python places and links it.

A process that finds its program on disk so needs no LLVM, which takes a third of a second and 60 MB to load. Generated
objects are code and constants that refer to each other, and to functions of the process, by 32-bit distances (System V ABI,
AMD64 supplement, chapter 4). Whatever else an object has makes ``load`` answer None, and LLVM loads it.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SUPPORTED = (platform.system(), platform.machine()) == ("Linux", "x86_64")
X86_64, RELOCATABLE = 62, 1
LOCAL = 0  # symbols of one object's own
PROGBITS, SYMTAB, RELA, REL, UNWIND = 1, 2, 4, 9, 0x70000001  # kinds of sections; nothing unwinds generated code
WRITE, ALLOC = 1, 2  # their flags
PC32, PLT32 = 2, 4  # relocations
STUB = struct.Struct("<6sQ")  # jmp [rip + 0], and the address behind it
JUMP = b"\xff\x25\0\0\0\0"
PAGE = 4096
_READ, _WRITE, _EXECUTE, _PRIVATE, _ANONYMOUS = 1, 2, 4, 2, 32  # of mmap, on Linux


class Section(NamedTuple):
    """A row of an object's table of sections."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


class Unsupported(Exception):
    """An object has what this loader does not know."""


class Image:
    """Objects in memory that can be run: the addresses of their functions. The memory is given back with the image, but not
    when the interpreter ends: threads may still be inside."""

    def __init__(self, start: int, size: int, symbols: dict[str, int]):
        self.symbols = symbols
        self._end = weakref.finalize(self, _unmap, start, size)
        self._end.atexit = False

    def keep_forever(self) -> None:
        """Never give the memory back."""
        self._end.detach()


def load(objects: Sequence[bytes]) -> Image | None:
    """These objects placed and linked together; None where that takes LLVM."""
    if not SUPPORTED:
        return None
    try:
        parts = [_Object(payload) for payload in objects]
        size = 0
        for part in parts:
            size = part.place(size)
        found = [row for part in parts for row in part.defined()]
        symbols = dict(found)
        if len(symbols) < len(found):
            raise Unsupported("two functions of one name")
        outside = sorted({name for part in parts for name in part.undefined()} - set(symbols))
        stubs = {name: size + STUB.size * i for i, name in enumerate(outside)}
        image = bytearray(-(-(size + STUB.size * len(stubs)) // PAGE) * PAGE)
        for name, at in stubs.items():
            STUB.pack_into(image, at, JUMP, _function(name))
        known = {**symbols, **stubs}
        for part in parts:
            part.write(image, known)
    except (Unsupported, struct.error, LookupError, ValueError):
        return None
    start = _map(bytes(image))
    return None if start is None else Image(start, len(image), {name: start + at for name, at in symbols.items()})


class _Object:
    """One relocatable object, and where its sections go."""

    def __init__(self, payload: bytes):
        self.data = payload
        if payload[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", payload, 16) != (RELOCATABLE, X86_64):
            raise Unsupported("not an object for this machine")
        table, entry, count = *struct.unpack_from("<Q", payload, 40), *struct.unpack_from("<HH", payload, 58)
        self.sections = [Section(*struct.unpack_from("<IIQQQQIIQQ", payload, table + entry * i)) for i in range(count)]
        self.places: dict[int, int] = {}  # section -> offset in the image
        tables = [s for s in self.sections if s.kind == SYMTAB]
        self.symbols = list(self._symbols(tables[0])) if tables else []

    def _symbols(self, table: Section) -> Iterator[tuple[str, int, int]]:
        """Names (none for local ones), sections (0: elsewhere) and offsets in them."""
        names = self.sections[table.link].offset
        for at in range(table.offset, table.offset + table.size, 24):
            name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.data, at)
            first = names + name
            text = self.data[first : self.data.index(b"\0", first)].decode()
            yield "" if info >> 4 == LOCAL else text, section, value

    def place(self, at: int) -> int:
        """Put what belongs in memory from ``at`` on; where that ends."""
        for number, section in enumerate(self.sections):
            if section.flags & ALLOC and section.kind != UNWIND:
                if section.flags & WRITE or section.kind != PROGBITS or section.offset + section.size > len(self.data):
                    raise Unsupported("more than code and constants, or less than it says")
                at = -(-at // max(1, section.align)) * max(1, section.align)
                self.places[number] = at
                at += section.size
        return at

    def defined(self) -> Iterator[tuple[str, int]]:
        """Names, and where in the image they are."""
        return ((n, self.places[s] + value) for n, s, value in self.symbols if n and s in self.places)

    def undefined(self) -> Iterator[str]:
        """Names that stand somewhere else."""
        return (name for name, section, _ in self.symbols if name and section == 0)

    def write(self, image: bytearray, known: dict[str, int]) -> None:
        """Copy the sections and fill in distances."""
        for number, at in self.places.items():
            section = self.sections[number]
            image[at : at + section.size] = self.data[section.offset : section.offset + section.size]
        for section in self.sections:
            if section.info in self.places and section.kind in (REL, RELA):
                if section.kind == REL:
                    raise Unsupported("relocations without addends")
                self._relocate(section, image, known)

    def _relocate(self, section: Section, image: bytearray, known: dict[str, int]) -> None:
        base = self.places[section.info]
        for row in range(section.offset, section.offset + section.size, 24):
            offset, what, addend = struct.unpack_from("<QQq", self.data, row)
            name, place, value = self.symbols[what >> 32]
            kind = what & 0xFFFFFFFF
            if place in self.places:
                target = self.places[place] + value
            elif place == 0 and kind == PLT32:  # a call: what is elsewhere may lie behind a stub
                target = known[name]
            else:
                raise Unsupported(f"relocation {kind} of {name!r}")
            if kind not in (PC32, PLT32):
                raise Unsupported(f"relocation {kind}")
            struct.pack_into("<i", image, base + offset, target + addend - (base + offset))


def _function(name: str) -> int:
    """The address of a function of this process."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except AttributeError:
        raise Unsupported(f"{name!r} is nowhere") from None


def _map(image: bytes) -> int | None:
    """Executable memory that holds ``image``; None where the system gives none."""
    library = ctypes.CDLL(None)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype, library.mmap.argtypes = pointer, (pointer, size, number, number, number, ctypes.c_long)
    library.mprotect.argtypes = (pointer, size, number)
    start = library.mmap(None, len(image), _READ | _WRITE, _PRIVATE | _ANONYMOUS, -1, 0)
    if start is None or start == ctypes.c_void_p(-1).value:
        return None
    ctypes.memmove(start, image, len(image))
    if library.mprotect(start, len(image), _READ | _EXECUTE):
        _unmap(start, len(image))
        return None
    return start


def _unmap(start: int, size: int) -> None:
    ctypes.CDLL(None).munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))
