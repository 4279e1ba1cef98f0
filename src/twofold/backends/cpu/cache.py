"""Objects on disk: machine code kept under TWOFOLD_HOME between processes.

A key is the SHA-256 of everything machine code depends on: the IR text, the machine, the optimisation level, how LLVM is
asked (``jit.py``, and what this process has set), the version of llvmlite, and which LLVM it is (by the size of llvmlite's
library, which holds it). A file is a magic word, the SHA-256 of its name and payload, and the payload: one that was cut
short, altered or moved fails the check and counts as absent. Machine code is run as it is, so the folder is private (0700)
and refused if it belongs to somebody else. Writers rename complete files into place, so processes may share the folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from twofold.base import files, flags

if TYPE_CHECKING:
    from twofold.backends.cpu.machine import Machine

_MAGIC = b"twofold object 2"


@functools.cache
def versions() -> str:
    """Those of what makes machine code: of this package by what asks LLVM, of llvmlite by the name that its installer left, of
    LLVM by the size of the library. To load either of them takes megabytes and up to a third of a second."""
    own = hashlib.sha256(Path(__file__).with_name("jit.py").read_bytes()).hexdigest()
    found = util.find_spec("llvmlite")
    if found is None or found.origin is None:
        return own
    package = Path(found.origin).parent
    names = sorted(path.name for path in package.parent.glob("llvmlite-*"))
    sizes = sorted(path.stat().st_size for path in (package / "binding").glob("*llvmlite.*"))
    return f"{own}|{names}|{sizes}"


def key(ir: str, machine: Machine, level: int, settings: Sequence[str] = ()) -> str:
    """The content address (hex) of the object made from this IR for this machine, with these settings of LLVM."""
    text = "\0".join([versions(), machine.key, str(level), *settings, ir])
    return hashlib.sha256(text.encode()).hexdigest()


def folder() -> Path | None:
    """The folder objects are kept in, made if need be; None when caching is off or the folder is not private."""
    if not flags.get("TWOFOLD_CACHE"):
        return None
    path = Path(flags.get("TWOFOLD_HOME")) / "objects"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(info.st_mode):
        return None
    if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o077):
        return None
    return path


def writable() -> bool:
    """Whether an object can be kept."""
    place = folder()
    return place is not None and os.access(place, os.W_OK)


def get(key: str) -> bytes | None:
    """The object kept under ``key``, or None if absent or damaged."""
    place = folder()
    if place is None:
        return None
    try:
        data = (place / key[:2] / key).read_bytes()
    except OSError:
        return None
    magic, digest, payload = data[:16], data[16:48], data[48:]
    if magic != _MAGIC or _digest(key, payload) != digest:
        return None
    return payload


def put(key: str, payload: bytes) -> None:
    """Keep an object; a full or read-only disk is no error, it only costs time later."""
    place = folder()
    if place is None:
        return
    try:
        (place / key[:2]).mkdir(mode=0o700, exist_ok=True)
        with files.atomic_write(place / key[:2] / key, durable=False) as stream:
            stream.write(_MAGIC + _digest(key, payload) + payload)
    except OSError:
        return


def _digest(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()
