"""Loading jax, once and late, and the settings under which twofold uses it.

Two decisions live here. Device memory is taken as it is needed: XLA's habit of taking 75 % of a GPU at the first use
is switched off, unless the user has set ``XLA_PYTHON_CLIENT_PREALLOCATE``. And 64-bit numbers are switched on around
each of our own calls only (``enable_x64`` as a context), so that the user's jax code in the same process keeps its
settings.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from twofold.base import flags
from twofold.base.errors import MissingDependencyError, OutOfMemoryError, TwofoldError


@functools.cache
def load() -> Any:
    """The jax module. MissingDependencyError says what to install."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax
    except ImportError as error:
        raise MissingDependencyError(
            f"devices of XLA need jax, which cannot be imported ({error}); install it with `pip install twofold[xla]` "
            "(CPU, TPU) or `pip install twofold[gpu]` (NVIDIA GPUs)"
        ) from error
    return jax


def x64() -> AbstractContextManager[Any]:
    """Inside the block jax keeps 64-bit dtypes; outside, the user's setting stands."""
    jax = load()
    context = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    return context(True)


def precision() -> Any:
    """How float32 products are computed: as float32, or (TWOFOLD_TF32) in the accelerator's faster, narrower format."""
    lax = load().lax
    return lax.Precision.DEFAULT if flags.get("TWOFOLD_TF32") else lax.Precision.HIGHEST


on_failure: list[Callable[[], None]] = []  # called before a failure is reported: in a job, it may be another's death
on_joint: list[Callable[[], None]] = []  # called before a computation that waits for all processes of a job


def begins_joint() -> None:
    """What follows needs all processes; every process must come here the same number of times."""
    for tell in on_joint:
        tell()


def is_joint(x: Any) -> bool:
    """Whether a jax array (or a layout) is in parts that lie in several processes: what is computed of it may wait for all."""
    return not (x.is_fully_addressable or x.is_fully_replicated)


def begins(buffers: Sequence[Any]) -> None:
    """A computation of these arrays (jax's or NumPy's) begins: one of all processes, if one of them is joint."""
    if on_joint and any(not isinstance(b, np.ndarray) and is_joint(b) for b in buffers):
        begins_joint()


def fetch(buffer: Any, what: str = "reading a result") -> np.ndarray:
    """A jax array on the host; an error of the program that computes it shows here."""
    try:
        return np.asarray(buffer)
    except load().errors.JaxRuntimeError as error:
        raise translated(error, what) from error


def translated(error: Exception, what: str) -> TwofoldError:
    """An error of XLA's runtime as one of ours, with its first line and what to do."""
    for look in on_failure:
        look()
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "RESOURCE_EXHAUSTED" in first or "out of memory" in first.lower():
        advice = "use a smaller batch, tw.checkpoint, or more devices"
        return OutOfMemoryError(f"{what}: the device has not enough memory ({first}); {advice}")
    return TwofoldError(f"{what}: XLA failed: {first}")
