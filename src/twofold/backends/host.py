"""What backends whose buffers are NumPy arrays share: nothing to move, and ops by their meaning in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.backends.interface import Backend, Device
from twofold.ir import Op, Spec


class HostBackend(Backend):
    """NumPy arrays as buffers; an op runs by its record's ``ref``."""

    def put(self, array: np.ndarray, device: Device) -> np.ndarray:
        return array

    def get(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def run(
        self, op: Op, buffers: Sequence[Any], attrs: dict[str, Any], specs: Sequence[Spec], device: Device
    ) -> Sequence[Any]:
        out = op.ref(*buffers, **attrs)
        return out if op.multi else (out,)
