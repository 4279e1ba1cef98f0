"""Memory there is: looked at before a program takes what it needs, so that too little is an error and not the end of the
process."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

from twofold.backends.cpu.machine import control_groups
from twofold.backends.cpu.recycle import POOL
from twofold.base.errors import OutOfMemoryError

SMALL = 32 << 20  # bytes for which nobody asks
# Of a control group (version 2 or not): the limit, what is used of it, and how much of that are files that can be read again
_FILES = {
    True: ("memory.max", "memory.current", "inactive_file"),
    False: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def require(name: str, needed: int, batch: int = 0, fixed: int = 0) -> None:
    """Raise OutOfMemoryError if ``needed`` bytes are more than there are. ``batch`` (0: unknown) is what they were planned
    for, ``fixed`` the part of them that does not grow with it."""
    if needed <= SMALL:
        return
    give_back()
    free = available()
    if free is not None and needed > free:
        POOL.release()
        free = available()
    if free is None or needed <= free:
        return
    advice = "use a smaller batch or tw.checkpoint"
    if batch > 1:
        fits = int(batch * (free - fixed) / max(1, needed - fixed))
        largest = f"a batch of about {fits} fits" if fits >= 1 else "not even a batch of 1 fits"
        advice = f"it was planned for a batch of {batch}, {largest}; or use tw.checkpoint"
    raise OutOfMemoryError(f"{name} needs {_shown(needed)} of working memory, {_shown(free)} are available: {advice}")


def give_back() -> None:
    """Return to the system what the C library holds of memory that is free, so that the peak is lower by it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def available() -> int | None:
    """Bytes this process may still take: of the machine, its control group and its own limits. None if that is not told."""
    known = [_machine(), *(_group(*group) for group in control_groups("memory")), _process()]
    return min((max(0, k) for k in known if k is not None), default=None)


def _machine() -> int | None:
    return _field("/proc/meminfo", "MemAvailable")


def _group(folder: Path, unified: bool) -> int | None:
    limit, used, files = _FILES[unified]
    try:
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # none, or "max"
        return None
    return left + int(rows.get(files, 0))


def _process() -> int | None:
    """What is left of the limit on address space."""
    if platform.system() == "Windows":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _field("/proc/self/status", "VmSize")
    return None if soft == resource.RLIM_INFINITY or used is None else soft - used


def _field(path: str, name: str) -> int | None:
    """A line such as ``VmSize:  1234 kB``, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)


def _shown(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 30 else f"{size / 2**20:.0f} MiB"
