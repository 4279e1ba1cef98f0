"""If, Loop and Scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.dtypes import int64
from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.io.onnx.load.known import Known
from twofold.io.onnx.load.rows import row
from twofold.ir import Value, bind
from twofold.ops import cast
from twofold.ops import elementwise as el
from twofold.ops.control import cond, scan, while_loop
from twofold.ops.movement import FLIP, permute_dims, reshape


def _branch(c: Any, name: str) -> tuple[Any, ...]:
    return tuple(c.loader.subgraph(c.attr(name), [], c.environment))


@row("If")
def _if(c: Any) -> Any:
    """A condition known now chooses its branch now."""
    if isinstance(c.inputs[0], Known):
        return _branch(c, "then_branch" if c.number(0) else "else_branch")
    run = lambda name: lambda: tuple(map(c.loader.inside, _branch(c, name)))
    return cond(reshape(c.value(0), ()), run("then_branch"), run("else_branch"))


@row("Loop")
def _loop(c: Any) -> Any:
    """Without stacked results a while loop; with them a scan, whose number of steps must be known."""
    body, enter = c.attr("body"), c.loader.enter
    init = [c.value(i) for i in range(2, len(c))]
    stacked = len(body.output) - 1 - len(init)
    limit, first = (c.inputs[i] if c.has(i) else None for i in (0, 1))
    if stacked < 0 or len(body.input) != len(init) + 2:
        raise FormatError(
            f"the body has {len(body.input)} inputs and {len(body.output)} outputs for {len(init)} carried values"
        )
    if stacked:
        return _counted(c, body, init, limit)
    start = el.logical_and(True, reshape(enter(first), ())) if first is not None else el.logical_and(True, True)
    count = None if limit is None else reshape(enter(limit), ())
    zero = reshape(enter(Known(np.zeros((), np.int64))), ())

    def step(carry: Any) -> Any:
        i, keep, *rest = carry
        keep, *rest = map(c.loader.inside, c.loader.subgraph(body, [i, keep, *rest], c.environment))
        return (i + 1, reshape(keep, ()), *rest)

    def test(carry: Any) -> Value:
        return carry[1] if count is None else el.logical_and(carry[1], carry[0] < cast(count, int64))

    return tuple(while_loop(test, step, (zero, start, *init)))[2:]


def _counted(c: Any, body: Any, init: list[Value], limit: Any) -> Any:
    if not isinstance(limit, Known):
        raise UnsupportedOpError("a loop with stacked results needs a number of steps known when the file is loaded")
    keep = c.inputs[1] if c.has(1) else Known(np.array(True))
    if not isinstance(keep, Known) or not bool(keep.array.reshape(())):
        raise UnsupportedOpError("a loop with stacked results needs a first condition that is constant and true")
    enter = c.loader.enter

    def step(carry: Any, i: Value) -> Any:
        keep, *rest = c.loader.subgraph(body, [i, Known(np.array(True)), *carry], c.environment)
        if not isinstance(keep, Known) or not keep.array.reshape(()):
            raise UnsupportedOpError("a loop with stacked results must not end early")
        rest = [c.loader.inside(r) for r in rest]
        return tuple(rest[: len(init)]), tuple(rest[len(init) :])

    steps = enter(Known(np.arange(int(limit.array.reshape(())), dtype=np.int64)))
    carry, ys = scan(step, tuple(init), steps)
    return (*carry, *ys)


@row("Scan")
def _scan(c: Any) -> Any:
    """Sequences along any axis, in either direction; before operator set 9 there was a batch dimension: refused."""
    if c.opset < 9:
        raise UnsupportedOpError("Scan of operator set 8 (batched); expected 9 or later")
    body, count = c.attr("body"), c.attr("num_scan_inputs")
    values = c.values()
    if not 0 < count <= len(values) or len(body.input) != len(values):
        raise FormatError(f"{count} of {len(values)} inputs are sequences, the body takes {len(body.input)}")
    init, xs = values[: len(values) - count], values[len(values) - count :]
    outputs = len(body.output) - len(init)
    backward = [bool(d) for d in c.attr("scan_input_directions", None) or [0] * count]
    mirrored = [bool(d) for d in c.attr("scan_output_directions", None) or [0] * outputs]
    axes_in, axes_out = (
        c.attr("scan_input_axes", None) or [0] * count,
        c.attr("scan_output_axes", None) or [0] * outputs,
    )
    reverse = all(backward)
    xs = [_along(x, axis, flip != reverse) for x, axis, flip in zip(xs, axes_in, backward)]

    def step(carry: Any, x: Any) -> Any:
        results = [c.loader.inside(r) for r in c.loader.subgraph(body, [*carry, *x], c.environment)]
        return tuple(results[: len(init)]), tuple(results[len(init) :])

    carry, ys = scan(step, tuple(init), tuple(xs), reverse=reverse)
    return (*carry, *(_back(y, axis, flip != reverse) for y, axis, flip in zip(ys, axes_out, mirrored)))


def _along(x: Value, axis: int, flip: bool) -> Value:
    """``x`` with its sequence first."""
    axis = axis % x.ndim
    x = permute_dims(x, (axis, *(i for i in range(x.ndim) if i != axis)))
    return bind(FLIP, x, axes=(0,)) if flip else x


def _back(y: Value, axis: int, flip: bool) -> Value:
    y = bind(FLIP, y, axes=(0,)) if flip else y
    axis = axis % y.ndim
    return permute_dims(y, (*range(1, axis + 1), 0, *range(axis + 1, y.ndim)))
