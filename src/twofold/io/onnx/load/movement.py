"""Operators that make and move elements, and those about shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dims import Dim, Sym
from twofold.base.dtypes import bool_, float32, int64
from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.base.shapes import axis_index, broadcast, is_static, product
from twofold.io.onnx.load.known import LIMIT, Known, dims_array
from twofold.io.onnx.load.rows import row
from twofold.ir import Value, bind
from twofold.ops import arrange, cast, where
from twofold.ops.creation import full, iota
from twofold.ops.gather import take
from twofold.ops.movement import FLIP, broadcast_to, concat, expand_dims, pad, permute_dims, reshape, slice_, squeeze

# ---- constants and shapes --------------------------------------------------------------------------------------------


def shape_of(given: Any) -> tuple[Dim, ...]:
    """The shape of an input, known or not."""
    return given.array.shape if isinstance(given, Known) else given.shape


@row("Constant")
def _constant(c: Any) -> Known:
    (name, attribute), *rest = list(c.attributes.items()) or [("", None)]
    readers = {
        "value": lambda: c.loader.tensors(attribute.t, "value"),
        "value_float": lambda: np.float32(attribute.f),
        "value_floats": lambda: np.array(attribute.floats, np.float32),
        "value_int": lambda: np.int64(attribute.i),
        "value_ints": lambda: np.array(attribute.ints, np.int64),
    }
    if rest or name not in readers:
        raise UnsupportedOpError(f"a constant given by {name or 'nothing'!r}; expected one of {', '.join(readers)}")
    return Known(np.asarray(readers[name]()))


@row("Shape")
def _shape(c: Any) -> Known:
    dims = shape_of(c.inputs[0])
    return Known(dims_array(dims[slice(c.attr("start", 0), c.attr("end", None))]))


@row("Size")
def _size(c: Any) -> Known:
    return Known(dims_array([product(shape_of(c.inputs[0]))]).reshape(()))


@row("ConstantOfShape")
def _constant_of_shape(c: Any) -> Any:
    shape = c.ints_of(0, "shape")
    fill = c.loader.tensors(c.attr("value"), "value") if "value" in c.attributes else np.zeros(1, np.float32)
    if fill.size != 1:
        raise FormatError(f"the value has shape {fill.shape}; expected one element")
    if is_static(shape) and 0 <= int(product(shape)) <= LIMIT and min(map(int, shape), default=0) >= 0:
        return Known(np.full(shape, fill.reshape(()), fill.dtype))
    return full(shape, fill.item() if fill.dtype.kind in "biuf" else float(fill.reshape(())), fill.dtype)


@row("Range")
def _range(c: Any) -> Value:
    start, stop, step = (c.number(i) for i in range(3))
    if isinstance(stop, Sym) or isinstance(start, Sym):
        if step != 1:
            raise UnsupportedOpError("a range of symbolic size must have step 1")
        numbers = iota(stop - start, int64)
        return numbers + start if start != 0 else numbers
    dtype = c.inputs[0].array.dtype
    if step == 0:
        raise FormatError("step 0")
    count = max(0, int(np.ceil((float(stop) - float(start)) / float(step))))
    numbers = cast(iota(count, int64), dtype)
    return numbers * step + start if (start, step) != (0, 1) else numbers


# ---- shapes ----------------------------------------------------------------------------------------------------------


@row("Reshape")
def _reshape(c: Any) -> Value:
    x, shape = c.value(0), list(c.ints_of(1, "shape"))
    if not c.attr("allowzero", 0):
        for i, d in enumerate(shape):
            if isinstance(d, int) and d == 0:
                if i >= x.ndim:
                    raise FormatError(f"size 0 at {i} copies a dimension that {x.spec} does not have")
                shape[i] = x.shape[i]
    return reshape(x, tuple(shape))


@row("Flatten")
def _flatten(c: Any) -> Value:
    x, axis = c.value(0), c.attr("axis", 1)
    axis = axis_index(axis, x.ndim + 1) if axis >= 0 else axis_index(axis, x.ndim)
    return reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@row("Squeeze")
def _squeeze(c: Any) -> Value:
    x, axes = c.value(0), c.ints_of(1, "axes", None)
    return squeeze(x, tuple(axes) if axes is not None else tuple(i for i, d in enumerate(x.shape) if d == 1))


@row("Unsqueeze")
def _unsqueeze(c: Any) -> Value:
    axes = tuple(c.ints_of(1, "axes"))
    if len(set(axes)) != len(axes):
        raise FormatError(f"axes {axes} name a dimension twice")
    return expand_dims(c.value(0), axes)


@row("Transpose")
def _transpose(c: Any) -> Value:
    x = c.value(0)
    return permute_dims(x, c.attr("perm", None) or tuple(range(x.ndim))[::-1])


@row("Expand")
def _expand(c: Any) -> Value:
    x = c.value(0)
    return broadcast_to(x, broadcast(x.shape, c.ints_of(1, "shape")))


@row("Tile")
def _tile(c: Any) -> Value:
    return arrange.tile(c.value(0), tuple(c.ints_of(1, "repeats")))


@row("Concat")
def _concat(c: Any) -> Value:
    return concat(c.values(), c.attr("axis"))


@row("DepthToSpace")
def _depth_to_space(c: Any) -> Value:
    x, b = c.value(0), c.attr("blocksize")
    n, ch, h, w = x.shape
    if c.attr("mode", "DCR") == "DCR":
        out = permute_dims(reshape(x, (n, b, b, ch // (b * b), h, w)), (0, 3, 4, 1, 5, 2))
    else:
        out = permute_dims(reshape(x, (n, ch // (b * b), b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return reshape(out, (n, ch // (b * b), h * b, w * b))


@row("SpaceToDepth")
def _space_to_depth(c: Any) -> Value:
    x, b = c.value(0), c.attr("blocksize")
    n, ch, h, w = x.shape
    out = permute_dims(
        reshape(x, (n, ch, h // b, b, w // b, b)),
        (0, 3, 5, 1, 2, 4) if c.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4),
    )
    return reshape(out, (n, ch * b * b, h // b, w // b))


# ---- slices ----------------------------------------------------------------------------------------------------------
_FAR = 1 << 31  # bounds beyond mean "to the end", also of a symbolic size


@row("Split")
def _split(c: Any) -> tuple[Value, ...]:
    x, parts = c.value(0), c.ints_of(1, "split", None)
    axis, count = axis_index(c.attr("axis", 0), x.ndim), c.outputs()
    size = x.shape[axis]
    if parts is None:
        count = c.attr("num_outputs", count)
        if not isinstance(size, int) or not 0 < count <= max(size, 1):
            raise UnsupportedOpError(f"{size} elements cannot be split into {count} parts")
        each = -(-size // count)
        parts = [min(each, size - each * i) for i in range(count)]
        if min(parts) < 0:
            raise FormatError(f"{size} elements do not split into {count} parts of {each}")
    if sum(parts[1:], parts[0]) != size:
        raise FormatError(f"parts {tuple(parts)} do not add up to {size}")
    out, start = [], 0
    for length in parts:
        out.append(slice_(x, [(start, start + length, 1) if i == axis else (0, d, 1) for i, d in enumerate(x.shape)]))
        start = start + length
    return tuple(out)


@row("Slice")
def _slice(c: Any) -> Value:
    x = c.value(0)
    starts, stops = c.ints_of(1, "starts"), c.ints_of(2, "ends")
    axes, steps = c.ints_of(3, "axes", None), c.ints_of(4, "steps", None) if c.opset >= 10 else None
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(stops) == len(axes) == len(steps):
        raise FormatError(
            f"{len(starts)} starts, {len(stops)} ends, {len(axes)} axes, {len(steps)} steps; expected as many of each"
        )
    ranges: list[tuple[Dim, Dim, int]] = [(0, d, 1) for d in x.shape]
    mirrored = []
    for axis, start, stop, step in zip(axes, starts, stops, steps):
        axis = axis_index(axis, x.ndim)
        if step == 0:
            raise FormatError("step 0")
        if step < 0:
            mirrored.append(axis)
        ranges[axis] = _bounds(start, stop, step, x.shape[axis])
    if mirrored:
        x = bind(FLIP, x, axes=tuple(sorted(mirrored)))
    return slice_(x, ranges)


def _bounds(start: Dim, stop: Dim, step: int, size: Dim) -> tuple[Dim, Dim, int]:
    """Bounds inside ``[0, size]`` of a positive step; of the mirrored axis if ``step`` is negative."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(stop, int):
        first, last, _ = slice(start, None if step < 0 and stop < -size else stop, step).indices(size)
        if step < 0:
            first, last = size - 1 - first, size - 1 - last
        return first, max(first, last), abs(step)
    if step < 0:
        if _is(start, -1) and isinstance(stop, int) and stop <= -_FAR + 2:
            return 0, size, -step
        raise UnsupportedOpError(f"a slice {start}:{stop}:{step} of a dimension of symbolic size {size}")
    return _inside(start, size), _inside(stop, size), step


def _is(dim: Dim, number: int) -> bool:
    return isinstance(dim, int) and dim == number


def _inside(bound: Dim, size: Dim) -> Dim:
    if isinstance(bound, int):
        return size if bound >= _FAR - 1 else size + bound if bound < 0 else bound
    return bound


# ---- pads ------------------------------------------------------------------------------------------------------------


@row("Pad")
def _pad(c: Any) -> Value:
    x, pads = c.value(0), c.ints_of(1, "pads")
    axes = [axis_index(a, x.ndim) for a in (c.ints_of(3, "axes", None) or range(x.ndim))]
    if len(pads) != 2 * len(axes):
        raise FormatError(f"{len(pads)} pads for {len(axes)} axes; expected two each")
    widths: list[tuple[Dim, Dim]] = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(axes)])
    mode = c.attr("mode", "constant")
    if mode == "constant":
        fill = c.number(2, 0.0) if c.opset >= 11 else c.attr("value", 0.0)
        return _padded(x, widths, float(fill))
    for axis, (low, high) in enumerate(widths):
        if (low, high) != (0, 0):
            x = _mirror(x, axis, low, high, mode)
    return x


def _padded(x: Value, widths: Any, fill: float) -> Value:
    return cast(pad(cast(x, float32), widths, fill), bool_) if x.dtype is bool_ else pad(x, widths, fill)


MAX_PADDED = 1 << 24  # elements of one dimension whose new order is written down


def _mirror(x: Value, axis: int, low: Dim, high: Dim, mode: str) -> Value:
    """Pads that repeat elements are gathers; negative ones crop first."""
    size = x.shape[axis]
    if not (isinstance(size, int) and isinstance(low, int) and isinstance(high, int)):
        raise UnsupportedOpError(f"padding mode {mode!r} of a dimension of symbolic size {size}")
    if mode not in ("reflect", "edge", "wrap") or size > MAX_PADDED or max(low, high) > MAX_PADDED:
        raise FormatError(f"mode {mode!r} with pads {(low, high)} of {size} elements")
    kept = np.arange(size)[max(0, -low) : size - max(0, -high)]
    return take(x, np.pad(kept, (max(0, low), max(0, high)), mode), axis=axis)  # type: ignore[call-overload]


@row("CenterCropPad")
def _center_crop_pad(c: Any) -> Value:
    x, shape = c.value(0), c.ints_of(1, "shape")
    axes = c.attr("axes", None) or range(x.ndim)
    widths = [(0, 0)] * x.ndim
    for axis, wanted in zip(axes, shape):
        extra = wanted - x.shape[axis]
        widths[axis] = (extra // 2, extra - extra // 2) if extra >= 0 else (-((-extra) // 2), extra + (-extra) // 2)
    return _padded(x, widths, 0.0)


@row("Trilu")
def _trilu(c: Any) -> Value:
    x, k, upper = c.value(0), c.number(1, 0), c.attr("upper", 1)
    rows, columns = iota(x.shape[-2], int64), iota(x.shape[-1], int64)
    distance = reshape(columns, (1, -1)) - reshape(rows, (-1, 1))
    return where(
        distance >= k if upper else distance <= k, x, full((), False if x.dtype is bool_ else 0, x.dtype, like=x)
    )
