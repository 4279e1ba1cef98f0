"""Random graphs for property tests: a few ops of every shape of record, state, and control flow."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from twofold import ops
from twofold.base.dtypes import bool_, float32, float64, int64
from twofold.ir import Builder, Graph, Spec, Value, bind, recording, scope
from twofold.ops import control, movement, reduction
from twofold.ops import elementwise as e

UNARY = (e.sin, e.negative, e.relu, e.square, e.sigmoid, ops.identity, ops.detach, e.abs_)
BINARY = (e.add, e.multiply, e.subtract, e.maximum)
NUMBERS = (0, 1, 2, -1, 0.5, 3.25)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph over f32/f64 matrices of a few random steps, with control flow among them."""
    builder = Builder(draw(st.sampled_from(["graph", "step", "train.step", "a b"])))
    dtype = draw(st.sampled_from([float32, float64]))
    rows = draw(st.integers(1, 3))
    spec = Spec((rows, 3), dtype)
    inputs = [builder.input(spec, draw(st.sampled_from(["x", "x", "layer 1/x", None]))) for _ in range(2)]
    with recording(builder):
        outputs = draw(_program(inputs))
    return builder.finish(outputs)


@st.composite
def _program(draw: st.DrawFn, values: list[Value]) -> list[Value]:
    """Values of one shape computed from ``values`` in a few random steps."""
    values = list(values)
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["unary", "binary", "number", "move", "array", "control"]))
        x, y = (draw(st.sampled_from(values)) for _ in range(2))
        with scope(draw(st.sampled_from(["features.0", "classifier"]))):
            values.append(draw(_step(kind, x, y)))
    return draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))


@st.composite
def _step(draw: st.DrawFn, kind: str, x: Value, y: Value) -> Value:
    if kind == "unary":
        return draw(st.sampled_from(UNARY))(x)
    if kind == "binary":
        return draw(st.sampled_from(BINARY))(x, y)
    if kind == "number":
        number = draw(st.sampled_from(NUMBERS))
        return draw(st.sampled_from([*BINARY, lambda a, b: e.pow_(e.abs_(a) + 1.0, b)]))(x, float(number))
    if kind == "array":
        seed = draw(st.integers(0, 3))
        return x + ops.constant(np.random.default_rng(seed).normal(size=x.shape).astype(x.dtype.numpy))
    if kind == "move":
        return draw(st.sampled_from(MOVES))(x)
    return draw(st.sampled_from(CONTROL))(x, y)


def _there_and_back(x: Value) -> Value:
    return movement.permute_dims(movement.permute_dims(x, (1, 0)), (1, 0))


def _padded(x: Value) -> Value:
    return movement.slice_along(movement.pad(x, ((1, 0), (0, 0)), 0.5), 0, 0, x.shape[0])


MOVES = (
    lambda x: movement.reshape(movement.reshape(x, -1), x.shape),
    _there_and_back,
    _padded,
    lambda x: bind("flip", bind("flip", x, axes=(1,)), axes=(1,)),
    lambda x: reduction.sum(x, axis=0, keepdims=True) + x,
    lambda x: ops.cast(ops.cast(x, "float64"), x.dtype),
    lambda x: ops.where(e.greater(x, 0), x, 0.0),
    lambda x: ops.full(x.shape, -0.0, x.dtype) + x,
)


def _branch(x: Value, y: Value) -> Value:
    return control.cond(e.greater(reduction.sum(x), 0), lambda a: a * y + 1.0, lambda a: e.sin(a) - y, x)


def _known_branch(x: Value, y: Value) -> Value:
    return control.cond(ops.constant(True, bool_), lambda a: a * y, lambda a: a, x)


def _loop(x: Value, y: Value) -> Value:
    start = (x, ops.constant(0, int64))
    return control.while_loop(lambda s: e.less(s[1], 3), lambda s: (s[0] * 0.5 + y, s[1] + 1), start)[0]


def _sequence(x: Value, y: Value) -> Value:
    carry, ys = control.scan(lambda c, row: (c + row, c * row), reduction.sum(x, axis=0), y)
    return ys + carry


CONTROL = (_branch, _known_branch, _loop, _sequence)


def arguments(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Random arrays for a graph's inputs and state."""
    rng = np.random.default_rng(seed)
    return [_array(rng, v.spec) for v in graph.all_inputs]


def _array(rng: np.random.Generator, spec: Spec) -> np.ndarray:
    if spec.dtype.is_floating:
        return rng.normal(size=spec.shape).astype(spec.dtype.numpy)
    if spec.dtype is bool_:
        return np.asarray(rng.random(spec.shape) < 0.5)
    return np.asarray(rng.integers(0, 5, spec.shape)).astype(spec.dtype.numpy)
