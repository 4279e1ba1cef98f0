"""Values known while a file is read: constants, and shapes, whose elements may be symbolic dims.

Operators on shapes (Shape, Gather, Concat, ...) are computed at once, so that ``Reshape(x, Concat(Shape(x)[0], 400))``
becomes ``reshape(x, (N, 400))`` and keeps every batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.base.dims import Sym
from twofold.base.errors import FormatError
from twofold.io.onnx.common import from_onnx

LIMIT = 4096  # elements; larger constants stay in the graph


class Known:
    """An array known now. ``symbolic`` ones hold dims (dtype object). A ``parameter`` is never folded away."""

    __slots__ = ("array", "name", "parameter", "value")

    def __init__(self, array: np.ndarray, name: str = "", parameter: bool = False):
        self.array = np.asarray(array)
        self.name = name
        self.parameter = parameter
        self.value: Any = None  # once it has entered the graph

    @property
    def symbolic(self) -> bool:
        return self.array.dtype == object

    def __repr__(self) -> str:
        return f"<known {self.name} {self.array!r}>"


def dims_array(dims: Any) -> np.ndarray:
    """Dims as an array: int64 if all are numbers, else of objects."""
    dims = list(dims)
    if not any(isinstance(d, Sym) for d in dims):
        return np.array(dims, np.int64)
    out = np.empty(len(dims), object)
    out[:] = dims
    return out


def _settled(array: Any) -> np.ndarray:
    """An array of objects without a symbol left becomes int64."""
    array = np.asarray(array)
    if array.dtype == object and not any(isinstance(d, Sym) for d in array.flat):
        return array.astype(np.int64)
    return array


Rule = Callable[..., Any]
FOLD: dict[str, Rule] = {
    "Identity": lambda c, x: x,
    "Add": lambda c, a, b: a + b,
    "Sub": lambda c, a, b: a - b,
    "Mul": lambda c, a, b: a * b,
    "Div": lambda c, a, b: _quotient(a, b),
    "Neg": lambda c, a: -a,
    "Concat": lambda c, *xs: _concat(xs, c.attr("axis")),
    "Gather": lambda c, x, i: np.take(x, i, axis=c.attr("axis", 0)),
    "Unsqueeze": lambda c, x, *axes: _unsqueezed(x, c.ints_of(1, "axes")),
    "Squeeze": lambda c, x, *axes: _squeezed(x, c.ints_of(1, "axes", None)),
    "Slice": lambda c, x, *bounds: _sliced(c, x),
    "ReduceProd": lambda c, x, *axes: _reduced(c, x),
    "Cast": lambda c, x: _cast(c, x),
    "Reshape": lambda c, x, *shape: _reshaped(c, x),
}
NUMBERS_ONLY: dict[str, Rule] = {  # symbolic dims have no order
    "Min": lambda c, *xs: _fold(np.minimum, xs),
    "Max": lambda c, *xs: _fold(np.maximum, xs),
    "Equal": lambda c, a, b: a == b,
    "Greater": lambda c, a, b: a > b,
    "GreaterOrEqual": lambda c, a, b: a >= b,
    "Less": lambda c, a, b: a < b,
    "LessOrEqual": lambda c, a, b: a <= b,
    "And": lambda c, a, b: a & b,
    "Or": lambda c, a, b: a | b,
    "Xor": lambda c, a, b: a ^ b,
    "Abs": lambda c, a: np.abs(a),
    "Mod": lambda c, a, b: np.fmod(a, b) if c.attr("fmod", 0) else np.mod(a, b),
    "Not": lambda c, a: ~a,
    "Where": lambda c, m, a, b: np.where(m, a, b),
    "Range": lambda c, start, stop, step: _range(start, stop, step),
    "Floor": lambda c, x: np.floor(x),
    "Ceil": lambda c, x: np.ceil(x),
    "Sqrt": lambda c, x: np.sqrt(x),
}


def fold(call: Any) -> Known | None:
    """The result of a node if all its inputs are known, small, and its operator is one of the above."""
    given = [x for x in call.inputs if x is not None]
    if not given or not all(isinstance(x, Known) and not x.parameter and x.array.size <= LIMIT for x in given):
        return None
    symbolic = any(x.symbolic for x in given)
    rule = FOLD.get(call.op) or (None if symbolic else NUMBERS_ONLY.get(call.op))
    if rule is None or (symbolic and call.op == "Where"):
        return None
    with np.errstate(all="ignore"):
        out = rule(call, *[x.array for x in given])
    if out is None:
        return None
    result = _settled(out)
    if not symbolic and result.dtype.kind == "O":
        return None
    return Known(result)


def _quotient(a: np.ndarray, b: np.ndarray) -> Any:
    if a.dtype.kind == "f":
        return a / b
    if any(isinstance(d, (int, np.integer)) and d == 0 for d in b.flat):
        raise FormatError("Div: a size is divided by 0")
    if a.dtype == object or b.dtype == object:
        return a // b  # sizes are not negative: truncation is floor
    quotient = np.abs(a) // np.abs(b)  # integers truncate towards zero
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _concat(xs: Any, axis: int) -> np.ndarray:
    if any(x.dtype == object for x in xs):
        xs = [x.astype(object) for x in xs]
    return np.concatenate(xs, axis)


def _unsqueezed(x: np.ndarray, axes: Any) -> np.ndarray:
    return np.expand_dims(x, tuple(int(a) for a in axes))


def _squeezed(x: np.ndarray, axes: Any) -> np.ndarray:
    return np.squeeze(x, None if axes is None else tuple(int(a) for a in axes))


def _sliced(c: Any, x: np.ndarray) -> np.ndarray:
    starts, stops = c.ints_of(1, "starts"), c.ints_of(2, "ends")
    axes = c.ints_of(3, "axes", None)
    steps = c.ints_of(4, "steps", None)
    axes = range(len(starts)) if axes is None else axes
    index = [slice(None)] * x.ndim
    for i, (axis, start, stop) in enumerate(zip(axes, starts, stops)):
        step = steps[i] if steps else 1
        stop = None if step < 0 and stop < -x.shape[axis] else stop
        index[axis] = slice(int(start), None if stop is None else int(stop), int(step))
    return x[tuple(index)]


def _reduced(c: Any, x: np.ndarray) -> Any:
    axes = c.ints_of(1, "axes", None)
    if axes is None and c.attr("noop_with_empty_axes", 0):
        return x
    return np.prod(x, axis=None if axes is None else tuple(axes), keepdims=bool(c.attr("keepdims", 1)))


def _cast(c: Any, x: np.ndarray) -> Any:
    dtype = from_onnx(c.attr("to"), "Cast")
    if x.dtype == object:
        return x if dtype.name in ("int64", "int32") else None
    return x.astype(dtype.numpy)


def _reshaped(c: Any, x: np.ndarray) -> Any:
    shape = c.ints_of(1, "shape")
    return x.reshape([x.shape[i] if d == 0 and not c.attr("allowzero", 0) else int(d) for i, d in enumerate(shape)])


def _fold(function: Any, xs: Any) -> Any:
    total = xs[0]
    for x in xs[1:]:
        total = function(total, x)
    return total


def _range(start: Any, stop: Any, step: Any) -> Any:
    if step == 0:
        raise FormatError("Range: step 0")
    count = (float(stop) - float(start)) / float(step)
    if not count <= LIMIT:
        return None
    return np.arange(start, stop, step, dtype=start.dtype)
