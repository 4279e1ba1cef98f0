"""Views: movement ops on a placed value that only change strides, and the channels-last form that kernels want."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twofold.backends.cpu.lowering.steps import Placed
from twofold.ir import Node


def view(node: Node, source: Placed) -> Placed | None:
    """The result of a movement op as a view of its placed input; None where elements would have to move."""
    name, attrs, shape = node.op.name, node.attrs, tuple(map(int, node.outputs[0].shape))
    if name in ("detach", "identity"):
        return source
    if name == "permute_dims":
        axes = attrs["axes"]
        return Placed(source.buffer, shape, tuple(source.strides[a] for a in axes), source.offset)
    if name == "slice":
        offset = source.offset + sum(s * at for s, at in zip(source.strides, attrs["starts"]))
        strides = tuple(s * step for s, step in zip(source.strides, attrs["steps"]))
        return Placed(source.buffer, shape, strides, offset)
    if name == "reshape":
        found = reshaped_strides(source.shape, source.strides, shape)
        return None if found is None else Placed(source.buffer, shape, found, source.offset)
    return None


def reshaped_strides(shape: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of a reshaped view, or None if the elements would have to be copied (NumPy decides)."""
    if 0 in shape:
        return None
    dummy = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), tuple(shape), tuple(strides))
    try:
        return np.reshape(dummy, tuple(new), copy=False).strides
    except ValueError:
        return None


def pixel_distance(p: Placed) -> int | None:
    """``ld`` of an (N, C, H, W) array lying channels-last (elements between neighbouring pixels); None if it does not."""
    (n, c, h, w), (sn, sc, sh, sw) = p.shape, p.strides
    if c > 1 and sc != 1:
        return None
    ld = sw if w > 1 else sh if h > 1 else sn if n > 1 else c
    rows = (w == 1 or sw == ld) and (h == 1 or sh == ld * w) and (n == 1 or sn == ld * w * h)
    return ld if rows and ld >= c else None


def matrix(p: Placed) -> tuple[int, bool] | None:
    """(batch, transposed) of a dense stack of matrices (..., rows, columns); None if it is not one."""
    *lead, rows, columns = p.shape
    *steps, sr, sc = p.strides
    if (columns == 1 or sc == 1) and (rows == 1 or sr == columns):
        transposed = False
    elif (rows == 1 or sr == 1) and (columns == 1 or sc == rows):
        transposed = True
    else:
        return None
    size, batch = rows * columns, 1
    for d, s in zip(reversed(lead), reversed(steps)):
        if d > 1 and s != size * batch:
            return None
        batch *= d
    return batch, transposed
