"""Gradients of control flow, written with control flow, so that they can be differentiated again.

    cond        the same choice between the branches' gradients (each computes its branch again)
    scan        a scan the other way over the saved carries
    while_loop  bounded: as a scan of ``max_iterations`` steps, of which those after the end change nothing;
                unbounded: a loop back over the steps, each carry computed again from the start
                (time O(n^2), memory O(1))

Only floating values have cotangents: ``wanted`` and ``given`` below are positions of such inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twofold.autodiff.gradients import gradients, zeros_like
from twofold.base.dtypes import int64
from twofold.ir import Graph, Spec, Value, bind, context, grad_mode
from twofold.ir.rewrite import inline
from twofold.ir.subgraph import closed
from twofold.ops.control import COND, SCAN, WHILE_LOOP, apply_scan, differentiate
from twofold.ops.convert import constant
from twofold.ops.elementwise import greater, less

COUNTER = Spec((), int64)


def _floating(values: Sequence[Any], start: int = 0) -> list[int]:
    """Positions of the values that can carry a gradient."""
    return [i + start for i, v in enumerate(values) if v.dtype.is_floating and not getattr(v, "detached", False)]


def _spread(gs: Sequence[Value], positions: Sequence[int], count: int) -> list[Value | None]:
    """A list of ``count`` with ``gs`` at ``positions`` and None elsewhere."""
    out: list[Value | None] = [None] * count
    for i, g in zip(positions, gs):
        out[i] = g
    return out


def _specs(values: Sequence[Value]) -> list[Spec]:
    return [v.spec for v in values]


def pull_back(
    graph: Graph, inputs: Sequence[Value], given: Sequence[int], gs: Sequence[Value], wanted: Sequence[int]
) -> list[Value]:
    """``reached``, with zeros where no path leads."""
    found = reached(graph, inputs, given, gs, wanted)
    return [zeros_like(inputs[i]) if g is None else g for i, g in zip(wanted, found)]


def reached(
    graph: Graph, inputs: Sequence[Value], given: Sequence[int], gs: Sequence[Value], wanted: Sequence[int]
) -> list[Value | None]:
    """Gradients of the outputs ``given`` (cotangents ``gs``) of a graph by its inputs ``wanted``, each taken as
    independent of the others; None where no path leads. The graph is computed again."""
    again = context.grad_enabled
    with grad_mode(True):
        outputs = inline(graph, inputs)
    return gradients([outputs[i] for i in given], [inputs[i] for i in wanted], gs, create_graph=again, independent=True)


# ---- cond ------------------------------------------------------------------------------------------------------------


def cond_vjp(
    gs: Sequence[Value | None], _ys: Any, pred: Value, *operands: Value, true: Graph, false: Graph
) -> list[Value | None]:
    """The branches' gradients, chosen by the same predicate."""
    given = [i for i, g in enumerate(gs) if g is not None]
    wanted = _floating(operands)
    seeds = [g for g in gs if g is not None]
    specs, count = [*_specs(operands), *_specs(seeds)], len(operands)

    def backward(name: str, branch: Graph) -> Graph:
        return closed(name, specs, lambda *xs: pull_back(branch, xs[:count], given, xs[count:], wanted))

    found = bind(COND, pred, *operands, *seeds, true=backward("true_vjp", true), false=backward("false_vjp", false))
    return [None, *_spread(found, wanted, count)]


# ---- scan ------------------------------------------------------------------------------------------------------------


def scan_vjp(
    gs: Sequence[Value | None], ys: Sequence[Value], *operands: Value,
    body: Graph, carries: int, xs: int, length: Any, reverse: bool, saved: bool,
) -> list[Value | None]:  # fmt: skip
    """A scan in the other direction: its carry is the cotangent of the carry, and the sums for the invariants."""
    attrs = {"carries": carries, "xs": xs, "length": length, "reverse": reverse}
    if not saved:
        ys = bind(SCAN, *operands, body=body, saved=True, **attrs)
    before = list(ys)[len(body.outputs) :][:carries]
    invariants = operands[carries + xs :]
    carry_at = [i for i in range(carries) if operands[i].dtype.is_floating]
    x_at = _floating(operands[carries : carries + xs], carries)
    rest_at = _floating(invariants, carries + xs)
    given = [i for i, v in enumerate(body.outputs) if v.dtype.is_floating]
    seeds = [g if (g := gs[i]) is not None else zeros_like(operands[i]) for i in carry_at]
    stacked = {i: g for i, g in enumerate(gs) if g is not None and i >= carries}
    late = list(stacked)
    sums = [zeros_like(operands[i]) for i in rest_at]

    def step(*v: Value) -> list[Value]:
        take = iter(v)
        g_carry, totals = [next(take) for _ in carry_at], [next(take) for _ in rest_at]
        inputs = [next(take) for _ in range(carries + xs)]
        g_late = dict(zip(late, (next(take) for _ in late)))
        inputs += list(take)
        g_out = dict(zip(carry_at, g_carry)) | g_late
        known = [i for i in given if i in g_out]
        found = pull_back(body, inputs, known, [g_out[i] for i in known], [*carry_at, *x_at, *rest_at])
        first, last = len(carry_at), len(carry_at) + len(x_at)
        for n, i in enumerate(carry_at):  # what later steps of a second differentiation want of the saved carries
            extra = g_late.get(len(body.outputs) + i)
            found[n] = found[n] if extra is None else found[n] + extra
        return [*found[:first], *(t + g for t, g in zip(totals, found[last:])), *found[first:last]]

    sequences = [*before, *operands[carries : carries + xs], *stacked.values()]
    values = [*seeds, *sums, *sequences, *invariants]
    specs = [
        *_specs([*seeds, *sums]), *(Spec(v.shape[1:], v.dtype) for v in sequences), *_specs(invariants),
    ]  # fmt: skip
    backward = {"carries": len(seeds) + len(sums), "xs": len(sequences), "length": length, "reverse": not reverse}
    found = apply_scan(closed("scan_vjp", specs, step), values, backward)
    return _spread(found, [*carry_at, *rest_at, *x_at], len(operands))


# ---- while_loop ------------------------------------------------------------------------------------------------------


def while_vjp(
    gs: Sequence[Value | None], _ys: Any, *operands: Value,
    cond: Graph, body: Graph, carries: int, max_iterations: int | None,
) -> list[Value | None]:  # fmt: skip
    """Through a bounded scan, or by computing each carry again from the start."""
    given = [i for i, g in enumerate(gs) if g is not None]
    seeds = [g for g in gs if g is not None]
    if max_iterations is None:
        return _unbounded_vjp(given, seeds, operands, cond, body, carries)
    bounded = _as_scan(cond, body, carries, max_iterations, _specs(operands))
    wanted = _floating(operands)
    count = len(operands)
    backward = closed(
        "while_vjp", [*_specs(operands), *_specs(seeds)],
        lambda *v: pull_back(bounded, v[:count], given, v[count:], wanted),
    )  # fmt: skip
    return _spread(inline(backward, [*operands, *seeds]), wanted, count)


def _as_scan(cond: Graph, body: Graph, carries: int, length: int, specs: Sequence[Spec]) -> Graph:
    """A bounded loop as a scan, each of whose steps is the body, or nothing once the condition fails."""
    stay = closed("stay", specs, lambda *v: v[:carries])

    def step(*v: Value) -> list[Value]:
        (goes_on,) = inline(cond, v)
        return list(bind(COND, goes_on, *v, true=body, false=stay))

    def loop(*v: Value) -> list[Value]:
        attrs = {"carries": carries, "xs": 0, "length": length, "reverse": False, "saved": True}
        return list(bind(SCAN, *v, body=closed("step", specs, step), **attrs))[:carries]

    with grad_mode(True):
        return closed("loop", specs, loop)


def _unbounded_vjp(
    given: Sequence[int], seeds: Sequence[Value], operands: Sequence[Value], cond: Graph, body: Graph, carries: int
) -> list[Value | None]:
    """Count the steps; then from the last to the first: the carry before it, and the body's gradient there."""
    invariants = operands[carries:]
    carry_at, rest_at = [i for i in range(carries) if operands[i].dtype.is_floating], _floating(invariants, carries)
    cotangents = [zeros_like(operands[i]) for i in carry_at]
    for i, g in zip(given, seeds):
        cotangents[carry_at.index(i)] = g
    sums = [zeros_like(operands[i]) for i in rest_at]
    state = [*cotangents, *sums]
    steps = _count_steps(operands, cond, body, carries)

    count = len(operands)
    step_vjp = closed(
        "step_vjp", _specs([*operands, *cotangents]),
        lambda *v: pull_back(body, v[:count], carry_at, v[count:], [*carry_at, *rest_at]),
    )  # fmt: skip

    def back(*v: Value) -> list[Value]:
        left = v[0] - 1
        gs, totals = v[1 : 1 + len(cotangents)], v[1 + len(cotangents) : 1 + len(state)]
        inputs = v[1 + len(state) :]
        found = inline(step_vjp, [*_carry_after(left, inputs, body, carries), *inputs[carries:], *gs])
        return [left, *found[: len(gs)], *(t + g for t, g in zip(totals, found[len(gs) :]))]

    values = [steps, *state, *operands]
    found = bind(
        WHILE_LOOP, *values, cond=closed("cond", _specs(values), lambda *v: [greater(v[0], 0)]),
        body=closed("while_vjp", _specs(values), back), carries=1 + len(state), max_iterations=None,
    )  # fmt: skip
    return _spread(found[1:], [*carry_at, *rest_at], len(operands))


def _count_steps(operands: Sequence[Value], cond: Graph, body: Graph, carries: int) -> Value:
    """How often the loop goes round, as a value."""
    specs = [COUNTER, *_specs(operands)]
    counted = bind(
        WHILE_LOOP, _number(0, operands), *operands, cond=closed("cond", specs, lambda *v: inline(cond, v[1:])),
        body=closed("body", specs, lambda *v: [v[0] + 1, *inline(body, v[1:])]),
        carries=1 + carries, max_iterations=None,
    )  # fmt: skip
    return counted[0]


def _carry_after(steps: Value, operands: Sequence[Value], body: Graph, carries: int) -> list[Value]:
    """The carry after so many steps from the start."""
    values = [_number(0, operands), *operands, steps]
    found = bind(
        WHILE_LOOP, *values, cond=closed("cond", _specs(values), lambda *v: [less(v[0], v[-1])]),
        body=closed("body", _specs(values), lambda *v: [v[0] + 1, *inline(body, v[1:-1])]),
        carries=1 + carries, max_iterations=None,
    )  # fmt: skip
    return list(found[1:])


def _number(n: int, near: Sequence[Value]) -> Value:
    return constant(n, int64, tuple(near))


differentiate.update(cond=cond_vjp, scan=scan_vjp, while_loop=while_vjp)
