"""Every environment variable twofold reads, in one table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from twofold.base.errors import TwofoldError


class Flag(NamedTuple):
    """One environment variable: how its text is read, its default, and what it does."""

    read: Any
    default: Any
    help: str


def _switch(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "false", "no", "off")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("a number from 0 is expected")
    return number


def _home() -> Path:
    """The user's folder for caches; among temporary files for a user without a home, as in some containers."""
    try:
        return Path("~/.cache/twofold").expanduser()
    except RuntimeError:
        import tempfile

        return Path(tempfile.gettempdir()) / f"twofold-{os.getuid()}"


FLAGS: dict[str, Flag] = {
    "TWOFOLD_HOME": Flag(lambda t: Path(t).expanduser(), _home(), "folder for data sets and caches"),
    "TWOFOLD_DEVICE": Flag(str, "cpu", "default device"),
    "TWOFOLD_DEBUG": Flag(int, 0, "1 devices and timings, 2 schedule, 3 graph after each pass, 4 loops, 5 LLVM, 6 asm"),
    "TWOFOLD_VERIFY": Flag(_switch, False, "run the reference beside every compiled program and compare"),
    "TWOFOLD_NUM_THREADS": Flag(_count, 0, "threads of the CPU backend; 0: as many as the process may use"),
    "TWOFOLD_CONV": Flag(str, "auto", "convolution algorithm of the CPU backend: auto or direct"),
    "TWOFOLD_TF32": Flag(_switch, False, "let accelerators round float32 products (TF32 on GPUs, bf16 passes on TPUs)"),
    "TWOFOLD_CACHE": Flag(_switch, True, "keep compiled objects on disk under TWOFOLD_HOME"),
}


def put(name: str, value: Any) -> None:
    """Set one flag, for this process and those that it starts."""
    if name not in FLAGS:
        raise KeyError(name)
    os.environ[name] = str(value)


def get(name: str) -> Any:
    """The value of one flag, read now (so that tests and programs may change the environment)."""
    flag = FLAGS[name]
    text = os.environ.get(name)
    if text is None or text == "":
        return flag.default
    try:
        return flag.read(text)
    except ValueError as error:
        raise TwofoldError(f"environment variable {name}={text!r} cannot be read: {error}; it means: {flag.help}") from None
