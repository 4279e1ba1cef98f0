"""checkpoint: trade time for memory. What a function computes inside is dropped, and computed again on the way back.

Recorded, the function becomes a graph held by one node; its gradient applies that graph again behind a barrier, which
no pass looks through. Eagerly, the function is called again: its arguments, whatever else it reads, and the variables
it assigned (batch-norm statistics, the random key) have the values of the first call meanwhile, so it draws the same
random numbers and no statistic is updated twice.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twofold.autodiff.control import reached
from twofold.autodiff.custom import CUSTOM
from twofold.autodiff.gradients import gradients
from twofold.base.errors import GradientError
from twofold.base.tree import flatten, unflatten
from twofold.ir import Graph, Node, Op, Spec, Value, bind, context, current_builder, grad_mode, interpret, register
from twofold.ir.builder import Builder, noting_assignments, precision_mode
from twofold.ir.subgraph import Part, share_inputs, written_variables
from twofold.ir.values import serials
from twofold.ops.convert import value
from twofold.ops.elementwise import barrier, detach, identity


def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` (of nests of values) with the same results and gradients, that keeps only its arguments for them."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Value)]
        inputs = [leaves[i] for i in places]
        policy = context.precision  # of both runs

        def call(*values: Value) -> Any:
            filled = list(leaves)
            for i, v in zip(places, values):
                filled[i] = v
            positional, named = unflatten(structure, filled)
            with precision_mode(policy):
                return function(*positional, **named)

        builder = current_builder(inputs)
        return _eager(call, inputs) if builder is None else _recorded(builder, call, inputs)

    return run


# ---- recorded --------------------------------------------------------------------------------------------------------


def _checkpoint_vjp(gs: Sequence[Value | None], _ys: Any, *operands: Value, body: Graph) -> list[Value | None]:
    given = [i for i, g in enumerate(gs) if g is not None]
    wanted = [i for i, v in enumerate(operands) if v.dtype.is_floating and not v.detached]
    with grad_mode(True):  # the barrier waits for the cotangents: nothing is recomputed before
        fresh = barrier(*operands, *(g for g in gs if g is not None))
    found = reached(body, fresh[: len(operands)], given, fresh[len(operands) :], wanted)
    by_place = dict(zip(wanted, found))
    return [by_place.get(i) for i in range(len(operands))]


def _infer(*specs: Spec, body: Graph) -> tuple[Spec, ...]:
    taken = tuple(v.spec for v in body.inputs)
    if taken != specs:
        raise GradientError(
            f"checkpoint: its graph takes {', '.join(map(str, taken))}; it is given {', '.join(map(str, specs))}"
        )
    return tuple(v.spec for v in body.outputs)


CHECKPOINT = register(
    Op(
        "checkpoint", _infer, lambda *xs, body: tuple(interpret(body, xs)), _checkpoint_vjp,
        kind="boundary", multi=True, sparse=True, doc="A graph whose inner values are computed again for its gradient.",
    )
)  # fmt: skip


def _recorded(builder: Builder, call: Callable[..., Any], inputs: Sequence[Value]) -> Any:
    inputs = [builder.lift(v) for v in inputs]
    part = Part(builder, "checkpoint", inputs, call)
    results, structure = flatten(part.result)
    variables = written_variables([part])
    outputs = [*(value(r) for r in results), *map(part.value_of, variables)]
    captured = share_inputs([part])
    values = builder.append(CHECKPOINT, (*inputs, *captured), {"body": part.finish(outputs)})
    for variable, new in zip(variables, values[len(results) :]):
        builder.write(variable, new)
    return unflatten(structure, values[: len(results)])


# ---- eager -----------------------------------------------------------------------------------------------------------


def _eager(call: Callable[..., Any], inputs: Sequence[Value]) -> Any:
    if not context.grad_enabled:
        return call(*inputs)
    start = next(serials)
    with noting_assignments() as assigned:
        result = call(*inputs)
    leaves, structure = flatten(result)
    ys = [value(leaf) for leaf in leaves]
    read = _read_by(ys, start)
    own = {v.key for v in inputs}
    captured = [v for v in read if v.key not in own]
    if not any(v.requires_grad for v in (*inputs, *captured)):
        return result

    def rule(_residuals: Any, _ys: Any, gs: Sequence[Value | None]) -> list[Value | None]:
        return _again(call, inputs, captured, assigned, gs)

    operands = [*inputs, *captured]
    attrs = {"args": len(operands), "results": len(ys), "rule": rule}
    with grad_mode(False):  # lets go of the record
        plain = [detach(y) for y in ys]
    return unflatten(structure, bind(CUSTOM, *operands, *plain, **attrs))


def _read_by(ys: Sequence[Value], start: int) -> list[Value]:
    """The tracked values from before ``start`` that the record of ``ys`` made since then reads."""
    found: dict[Any, Value] = {}
    stack, seen = list(ys), set()
    while stack:
        v = stack.pop()
        producer: Node | None = None if v.owner is not None else v.producer
        if producer is None or producer.serial < start:
            if v.requires_grad and not v.detached:
                found.setdefault(v.key, v)
        elif producer.serial not in seen:
            seen.add(producer.serial)
            stack += producer.inputs
    return list(found.values())


def _again(
    call: Callable[..., Any], inputs: Sequence[Value], captured: Sequence[Value], assigned: dict, gs: Sequence[Any]
) -> list[Value | None]:
    """Call the function a second time, and differentiate that."""
    again = context.grad_enabled
    with grad_mode(True), _as_before(assigned):
        fresh = [identity(v) if again else _leaf(v) for v in inputs]
        ys = [value(leaf) for leaf in flatten(call(*fresh))[0]]
    if len(ys) != len(gs):
        raise GradientError(f"checkpoint: the function gave {len(gs)} results at first and {len(ys)} when called again")
    given = [i for i, g in enumerate(gs) if g is not None]
    xs, seeds = [*fresh, *captured], [gs[i] for i in given]
    return gradients([ys[i] for i in given], xs, seeds, create_graph=again, independent=True)


def _leaf(v: Value) -> Value:
    with grad_mode(False):
        out = detach(v)
    out.requires_grad = v.requires_grad
    return out


@contextlib.contextmanager
def _as_before(assigned: dict[int, tuple[Any, Value]]) -> Iterator[None]:
    """Variables have the values noted before the first call inside the block, and their present ones after it."""
    present = [(variable, variable.value) for variable, _ in assigned.values()]
    for variable, before in assigned.values():
        variable.put_back(before)
    try:
        yield
    finally:
        for variable, now in present:
            variable.put_back(now)
