"""Eager ops worth a compiled kernel: convolutions, pools, batch norm. Everything else is quick enough, or quicker, in NumPy.

A program is kept for each op, shapes, attributes and layout of the operands; images stay channels-last between such ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu import locks
from twofold.base.dtypes import as_dtype, float32, sum_dtype
from twofold.ir import Builder, Op, Spec

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram

CHANNELS_LAST = (0, 2, 3, 1)
LEAST_OUTPUT = 256  # elements: smaller results are left to NumPy
_programs: dict[Any, CpuProgram] = {}
_lock = locks.renewed()


def is_heavy(op: Op, specs: Sequence[Spec], attrs: dict[str, Any]) -> bool:
    """Whether the op goes through a compiled program."""
    if op.kind not in ("conv", "pool", "normalization"):
        return False
    out = specs[0]
    return sum_dtype(out.dtype) is float32 and out.ndim == 4 and int(np.prod(out.shape)) >= LEAST_OUTPUT  # type: ignore[arg-type]


def program(op: Op, buffers: Sequence[np.ndarray], attrs: dict[str, Any]) -> CpuProgram:
    """The program of one op for operands like these."""
    key = (op, tuple((b.shape, b.dtype, _lies_channels_last(b)) for b in buffers), tuple(attrs.items()))
    with _lock:
        if key not in _programs:
            _programs[key] = _compile(op, buffers, attrs)
        return _programs[key]


def _lies_channels_last(array: np.ndarray) -> bool:
    return array.ndim == 4 and not array.flags.c_contiguous and array.transpose(CHANNELS_LAST).flags.c_contiguous


def _compile(op: Op, buffers: Sequence[np.ndarray], attrs: dict[str, Any]) -> CpuProgram:
    from twofold.backends.cpu.backend import CpuProgram

    builder = Builder(op.name)
    inputs = [builder.input(Spec(b.shape, as_dtype(b.dtype))) for b in buffers]
    out = builder.append(op, inputs, dict(attrs))
    orders = {i: CHANNELS_LAST for i, b in enumerate(buffers) if _lies_channels_last(b)}
    return CpuProgram(builder.finish(out if op.multi else [out]), orders=orders)
