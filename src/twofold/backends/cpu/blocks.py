"""State as kernels read it, between the calls of a program: convolution weights (and their moments) in blocks of outputs.

It lies as ``kernels.weights.Packed`` without padding: ``[group][block of outputs][tap][input][output within the block]``. What
runs programs found on disk needs this, so nothing of the compiler is loaded here.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twofold.backends.cpu import jit
from twofold.backends.cpu.recycle import line_up
from twofold.backends.interface import Layout


@dataclass(frozen=True)
class Blocks(Layout):
    """Weights (O, I, KH, KW) in whole blocks of ``block`` outputs; ``outs`` and ``ins`` are those of a group. ``packs`` and
    ``unpacks`` are kernels for it, each as its object's key in the cache and its symbol: several times as quick as NumPy."""

    groups: int
    outs: int
    ins: int
    kh: int
    kw: int
    block: int
    packs: tuple[str, str] = field(default=("", ""), compare=False)
    unpacks: tuple[str, str] = field(default=("", ""), compare=False)

    @property
    def size(self) -> int:
        return self.groups * self.outs * self.ins * self.kh * self.kw

    def pack(self, buffer: np.ndarray) -> np.ndarray:
        plain, packed = np.ascontiguousarray(buffer), line_up((self.size,), buffer.dtype)
        if not _moved(self.packs, plain, packed):
            self._panels(packed)[...] = self._rows(plain).transpose(0, 1, 4, 3, 2)
        return packed

    def unpack(self, buffer: np.ndarray) -> np.ndarray:
        plain = np.empty((self.groups * self.outs, self.ins, self.kh, self.kw), buffer.dtype)
        if not _moved(self.unpacks, buffer, plain):
            self._rows(plain)[...] = self._panels(buffer).transpose(0, 1, 4, 3, 2)
        return plain

    def copy(self, buffer: np.ndarray) -> np.ndarray:
        copy = line_up(buffer.shape, buffer.dtype)
        copy[...] = buffer
        return copy

    def _rows(self, plain: np.ndarray) -> np.ndarray:
        return plain.reshape(self.groups, self.outs // self.block, self.block, self.ins, self.kh * self.kw)

    def _panels(self, packed: np.ndarray) -> np.ndarray:
        return packed.reshape(self.groups, self.outs // self.block, self.kh * self.kw, self.ins, self.block)


def _moved(kernel: tuple[str, str], source: np.ndarray, target: np.ndarray) -> bool:
    """Let a kernel move the numbers; whether there is one."""
    function = _function(*kernel) if source.dtype == np.float32 else None
    if function is not None:
        function(source.ctypes.data, target.ctypes.data, 0, 1, None)
    return function is not None


@functools.cache
def _function(name: str, symbol: str) -> Callable[..., Any] | None:
    """A kernel of two arrays as a function for one thread."""
    payload = jit.known(name) if name else None
    if payload is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    return jit.link([payload]).function(symbol, pointer, pointer, number, number, pointer)
