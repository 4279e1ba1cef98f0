"""Resize: each axis by itself, as a gather (nearest) or as a product with a small matrix (linear, cubic)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.base.dtypes import float32
from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.base.shapes import axis_index
from twofold.io.onnx.load.known import LIMIT
from twofold.io.onnx.load.rows import row
from twofold.ir import Value
from twofold.ops import cast
from twofold.ops import elementwise as el
from twofold.ops.gather import take
from twofold.ops.matmul import matmul
from twofold.ops.movement import permute_dims

# where the centre of output i lies in the input, for output size n, input size m, scale s = n/m as given
COORDINATES: dict[str, Callable[..., np.ndarray]] = {
    "half_pixel": lambda i, n, m, s, lo, hi: (i + 0.5) / s - 0.5,
    "half_pixel_symmetric": lambda i, n, m, s, lo, hi: m / 2 * (1 - n / (s * m)) + (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, n, m, s, lo, hi: (i + 0.5) / s - 0.5 if n > 1 else i * 0.0 - 0.5,
    "align_corners": lambda i, n, m, s, lo, hi: i * (m - 1) / (s * m - 1) if s * m > 1 else i * 0.0,
    "asymmetric": lambda i, n, m, s, lo, hi: i / s,
    "tf_crop_and_resize": lambda i, n, m, s, lo, hi: (
        lo * (m - 1) + i * (hi - lo) * (m - 1) / (n - 1) if n > 1 else i * 0.0 + 0.5 * (lo + hi) * (m - 1)
    ),
}
ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _linear(distance: np.ndarray, a: float) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(distance))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys's kernel (1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


KERNELS = {"linear": (_linear, 1), "cubic": (_cubic, 2)}  # kernel, half its width


def weights(x: np.ndarray, m: int, mode: str, a: float, shrink: float, exclude_outside: bool) -> np.ndarray:
    """The matrix (outputs, m) that samples at positions ``x``; ``shrink`` < 1 widens the kernel (antialiasing)."""
    kernel, half = KERNELS[mode]
    reach = math.ceil(half / shrink) + 1
    matrix = np.zeros((len(x), m))
    rows = np.arange(len(x))
    total = np.zeros(len(x))
    base = np.floor(x).astype(np.int64)
    for k in range(-reach, reach + 1):
        place = base + k
        w = kernel((x - place) * shrink, a)
        inside = (place >= 0) & (place < m)
        w = np.where(inside, w, 0) if exclude_outside else w
        np.add.at(matrix, (rows, np.clip(place, 0, m - 1)), w)
        total += w
    return matrix / np.where(total == 0, 1, total)[:, None]


@row("Resize", "Upsample")
def _resize(c: Any) -> Value:
    x = c.value(0)
    axes = [axis_index(a, x.ndim) for a in (c.attr("axes", None) or range(x.ndim))]
    mode = c.attr("mode", "nearest")
    transform = (
        c.attr("coordinate_transformation_mode", "half_pixel") if c.op == "Resize" and c.opset >= 11 else "asymmetric"
    )
    rounding = c.attr("nearest_mode", "round_prefer_floor") if c.op == "Resize" and c.opset >= 11 else "floor"
    if mode not in ("nearest", *KERNELS) or transform not in COORDINATES or rounding not in ROUNDING:
        raise UnsupportedOpError(f"mode {mode!r}, coordinates {transform!r}, rounding {rounding!r}")
    sizes, scales = _targets(c, x, axes)
    roi = c.known(1) if transform == "tf_crop_and_resize" else None
    outside = []
    y = x if mode == "nearest" or x.dtype.is_floating else cast(x, float32)
    for i, axis in enumerate(axes):
        m, n, s = x.shape[axis], sizes[i], scales[i]
        if n == m and s == 1 and roi is None:
            continue
        if not isinstance(m, int) or not 0 < n <= 1 << 20:
            raise UnsupportedOpError(f"axis {axis} of size {m} resized to {n}; expected sizes that are known")
        lo, hi = (float(roi[i]), float(roi[i + len(axes)])) if roi is not None else (0.0, 1.0)
        at = COORDINATES[transform](np.arange(n, dtype=np.float64), n, m, s, lo, hi)
        outside.append((axis, (at < 0) | (at > m - 1)))
        y = _along(c, y, axis, at, m, mode, rounding, min(1.0, s))
    if roi is not None:
        y = _extrapolated(c, y, outside)
    return cast(el.round_(y), x.dtype) if y.dtype is not x.dtype else y


def _along(c: Any, y: Value, axis: int, at: np.ndarray, m: int, mode: str, rounding: str, scale: float) -> Value:
    if mode == "nearest":
        return take(y, np.clip(ROUNDING[rounding](at), 0, m - 1).astype(np.int64), axis=axis)
    shrink = scale if c.attr("antialias", 0) else 1.0
    matrix = weights(at, m, mode, c.attr("cubic_coeff_a", -0.75), shrink, bool(c.attr("exclude_outside", 0)))
    order = [*(i for i in range(y.ndim) if i != axis), axis]
    out = matmul(permute_dims(y, order), el.constant(matrix.T.astype(y.dtype.numpy), near=(y,)))
    return permute_dims(out, [int(i) for i in np.argsort(order)])


def _extrapolated(c: Any, y: Value, outside: Any) -> Value:
    from twofold.ops import where

    mask = np.zeros((1,) * y.ndim, bool)
    for axis, flags in outside:
        mask = mask | flags.reshape([-1 if i == axis else 1 for i in range(y.ndim)])
    fill = el.constant(np.asarray(c.attr("extrapolation_value", 0.0), y.dtype.numpy), near=(y,))
    return where(el.constant(mask, near=(y,)), fill, y)


def _targets(c: Any, x: Value, axes: list[int]) -> tuple[list[Any], list[float]]:
    """Sizes and scales per axis, from whichever is given."""
    old: list[Any] = [x.shape[a] for a in axes]
    if c.op == "Upsample" or c.opset < 11:
        given = c.known(1) if c.has(1) else np.asarray(c.attr("scales"))
        sizes = None
    else:
        given, sizes = c.known(2), c.ints_of(3, "sizes", None)
    if given is not None and given.size:
        scales = [float(s) for s in given.reshape(-1)]
        if len(scales) != len(axes) or not all(0 < s < LIMIT for s in scales):
            raise FormatError(f"scales {scales} for {len(axes)} axes")
        return [math.floor(m * s) if isinstance(m, int) else m if s == 1 else 0 for m, s in zip(old, scales)], scales
    if sizes is None or len(sizes) != len(axes):
        raise FormatError(f"sizes {sizes} for {len(axes)} axes")
    policy = c.attr("keep_aspect_ratio_policy", "stretch")
    scales = [n / m if isinstance(m, int) and isinstance(n, int) and m else 1.0 for n, m in zip(sizes, old)]
    if policy != "stretch":
        scales = [(min if policy == "not_larger" else max)(scales)] * len(scales)
        sizes = [math.floor(m * s + 0.5) for m, s in zip(old, scales)]
    return list(sizes), scales
