"""Control flow and boundaries: graphs inside graphs. The check flag of the inner graphs travels with their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from twofold.backends.xla import checks
from twofold.ir import Graph


def _inner(graph: Graph, arguments: Sequence[Any]) -> tuple[list[Any], Any]:
    """Results of a sub-graph, and its check flag."""
    from twofold.backends.xla.lower import evaluate

    outer = checks.current()
    with checks.collecting(outer.messages, outer.sizes) as frame:
        return evaluate(graph, arguments), frame.result()


def _first(flag: Any, found: Any) -> Any:
    return jnp.where(flag[0] > 0, flag, found)


def _cond(pred: Any, *operands: Any, true: Graph, false: Graph) -> tuple[Any, ...]:
    results, flag = lax.cond(pred, lambda *xs: _inner(true, xs), lambda *xs: _inner(false, xs), *operands)
    checks.current().merge(flag)
    return tuple(results)


def _while_loop(*operands: Any, cond: Graph, body: Graph, carries: int, max_iterations: int | None) -> tuple[Any, ...]:
    invariants = operands[carries:]

    def go_on(count: Any, carry: Any) -> tuple[Any, Any]:
        (more,), flag = _inner(cond, [*carry, *invariants])
        return more & (True if max_iterations is None else count < max_iterations), flag

    def step(state: Any) -> Any:
        count, flag, _, carry = state
        results, found = _inner(body, [*carry, *invariants])
        more, failed = go_on(count + 1, results)
        return count + 1, _first(_first(flag, found), failed), more, results

    carry = list(operands[:carries])
    more, flag = go_on(jnp.int64(0), carry)
    keep = lambda state: state[2] & (state[1][0] == 0)  # an index out of range ends the loop
    _, flag, _, carry = lax.while_loop(keep, step, (jnp.int64(0), flag, more, carry))
    checks.current().merge(flag)
    return tuple(carry)


def _scan(
    *operands: Any, body: Graph, carries: int, xs: int, length: int, reverse: bool, saved: bool
) -> tuple[Any, ...]:
    sequences, invariants = operands[carries : carries + xs], operands[carries + xs :]

    def step(state: Any, x: Any) -> Any:
        carry, flag = state
        results, found = _inner(body, [*carry, *x, *invariants])
        stacked = [*results[carries:], *(carry if saved else ())]
        return (results[:carries], _first(flag, found)), stacked

    start = (list(operands[:carries]), jnp.zeros(2, jnp.int64))
    (carry, flag), stacked = lax.scan(step, start, list(sequences), length=length, reverse=reverse)
    checks.current().merge(flag)
    return (*carry, *stacked)


def _checkpoint(*operands: Any, body: Graph) -> tuple[Any, ...]:
    results, flag = _inner(body, operands)
    checks.current().merge(flag)
    return tuple(results)


ROWS = {
    "cond": _cond, "while_loop": _while_loop, "scan": _scan, "checkpoint": _checkpoint,
    "custom_vjp": lambda *xs, args, results, rule: xs[args : args + results],
}  # fmt: skip
