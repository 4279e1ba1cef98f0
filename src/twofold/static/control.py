"""Control flow over tensors: ``tw.cond``, ``tw.while_loop``, ``tw.scan``. Eagerly they are Python's; in a graph, ops."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from twofold.base.tree import tree_map
from twofold.ops import control
from twofold.tensor.tensor import unwrap, wrap


def _over_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function over nests of tensors as one over nests of values."""
    return lambda *args: tree_map(unwrap, function(*(tree_map(wrap, a) for a in args)))


def _spread(function: Callable[..., Any], init: Any) -> Callable[[Any], Any]:
    """``function`` of one carry. If the carry is a sequence of n > 1 parts and the function takes n arguments, it gets
    the parts one by one."""
    if isinstance(init, (tuple, list)) and len(init) > 1 and _positional(function) == len(init):
        return lambda carry: function(*carry)
    return function


def _positional(function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
    """``true_fn(*operands)`` if ``pred`` (one bool) is true, else ``false_fn(*operands)``; both return the same nest.

    In a compiled program one branch runs, chosen when the program runs; variables that a branch assigns (batch-norm
    statistics, the random key) are assigned only if it ran. Differentiable.

    >>> import twofold as tw
    >>> f = tw.compile(lambda x: tw.cond(x.sum() > 0, lambda v: v * 2, lambda v: -v, x))
    >>> f(tw.tensor([1.0, 2.0])).tolist(), f(tw.tensor([-1.0, -2.0])).tolist()
    ([2.0, 4.0], [1.0, 2.0])
    """
    branches = [_over_values(f) for f in (true_fn, false_fn)]
    return tree_map(wrap, control.cond(unwrap(pred), *branches, *(tree_map(unwrap, o) for o in operands)))


def while_loop(
    cond_fn: Callable[..., Any], body_fn: Callable[..., Any], init: Any, max_iterations: int | None = None
) -> Any:
    """``carry = init; while cond_fn(carry): carry = body_fn(carry)``, at most ``max_iterations`` times.

    ``body_fn`` returns a nest like ``init``. Functions of as many arguments as ``init`` has parts get them one by one.
    Differentiable: with ``max_iterations`` the backward loop keeps every carry; without, it computes them again
    (quadratic time, constant memory).

    >>> import twofold as tw
    >>> tw.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (tw.tensor(0), tw.tensor(1.0)))[1].item()
    8.0
    """
    test, body = (_over_values(_spread(f, init)) for f in (cond_fn, body_fn))
    return tree_map(wrap, control.while_loop(test, body, tree_map(unwrap, init), max_iterations))


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """``carry, y = f(carry, x)`` for each ``x`` along the first dimension of ``xs``: (last carry, stacked ys).

    >>> import twofold as tw
    >>> last, running = tw.scan(lambda c, x: (c + x, c + x), tw.tensor(0.0), tw.tensor([1.0, 2.0, 3.0]))
    >>> last.item(), running.tolist()
    (6.0, [1.0, 3.0, 6.0])
    """
    carry, ys = control.scan(_over_values(f), tree_map(unwrap, init), tree_map(unwrap, xs), length, reverse)
    return tree_map(wrap, carry), tree_map(wrap, ys)


__all__ = ["cond", "scan", "while_loop"]
