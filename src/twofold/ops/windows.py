"""Sliding-window arithmetic shared by convolutions and pools, N-dimensional.

A window over one dimension has ``size`` taps ``dilation`` apart, moves by ``stride`` over the input padded with
``(low, high)``. Positions are counted in the padded input, so output ``o`` reads ``o * stride + k * dilation``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from twofold.base.dims import Dim
from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import show

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def extent(size: Dim, dilation: int) -> Dim:
    """How many input positions a dilated window spans."""
    return dilation * (size - 1) + 1


def output_size(n: Dim, size: Dim, stride: int, pad: tuple[int, int], dilation: int, ceil_mode: bool = False) -> Dim:
    """Number of window positions. In ceil mode the last window may hang over the end, but starts inside ``low + n``."""
    (low, high), span = pad, extent(size, dilation)
    if not ceil_mode:
        return (n + (low + high) - span) // stride + 1
    return (n + (low + min(high - int(span) + stride - 1, -1))) // stride + 1


def check_window(name: str, rank: int, strides: Ints, padding: Pads, dilation: Ints) -> None:
    """One positive stride and dilation and one pair of non-negative pads for each spatial dimension."""
    for what, given in (("strides", strides), ("padding", padding), ("dilation", dilation)):
        if len(given) != rank:
            raise ArgumentError(
                f"{name}: {what} {given} has {len(given)} entries; expected {rank}, one per spatial dimension"
            )
    if min(strides, default=1) < 1 or min(dilation, default=1) < 1:
        raise ArgumentError(f"{name}: strides {strides} and dilation {dilation} must be at least 1")
    if any(min(pair) < 0 for pair in padding):
        raise ArgumentError(f"{name}: padding {padding} must not be negative; crop the input by slicing")


def check_fits(name: str, shape: Sequence[Dim], out: Sequence[Dim], window: Sequence[Dim]) -> None:
    """Every output size that is known is at least one."""
    if any(isinstance(o, int) and o < 1 for o in out):
        raise ShapeError(
            f"{name}: the window {show(tuple(window))} is larger than the padded input of shape {show(tuple(shape))}; "
            "use a larger input, more padding or a smaller window"
        )


def taps(window: Ints) -> Iterator[Ints]:
    """Every position inside a window, in row-major order."""
    return itertools.product(*map(range, window))


def tap_slices(tap: Ints, out: Sequence[int], strides: Ints, dilation: Ints) -> tuple[Any, ...]:
    """The slices of a padded ``(N, C, *spatial)`` array that one tap of every window reads."""
    starts = [k * d for k, d in zip(tap, dilation)]
    spatial = (slice(a, a + (o - 1) * s + 1, s) for a, o, s in zip(starts, out, strides))
    return (slice(None), slice(None), *spatial)


def padded(x: np.ndarray, padding: Sequence[tuple[int, int]], fill: Any = 0) -> np.ndarray:
    """``x`` of shape ``(N, C, *spatial)`` with padded spatial dimensions; ``x`` itself if there is no padding."""
    if not any(itertools.chain.from_iterable(padding)):
        return x
    shape = [n + low + high for n, (low, high) in zip(x.shape[2:], padding)]
    out = np.full((*x.shape[:2], *shape), fill, x.dtype)
    out[(slice(None), slice(None), *(slice(low, low + n) for n, (low, _) in zip(x.shape[2:], padding)))] = x
    return out


def cropped(x: np.ndarray, padding: Sequence[tuple[int, int]], spatial: Sequence[int]) -> np.ndarray:
    """The inside of a padded array: the inverse of ``padded``."""
    return x[(slice(None), slice(None), *(slice(low, low + n) for n, (low, _) in zip(spatial, padding)))]


def widen(x: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 are computed in float32."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
