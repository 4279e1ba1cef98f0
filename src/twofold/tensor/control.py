"""``tw.cond``, ``tw.while_loop``, ``tw.scan``: control flow of tensors, in eager and in compiled programs.

The functions and their meaning are in ``twofold.ops.control``; here tensors are exchanged for values and back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from twofold.base.tree import tree_map
from twofold.ir import Value
from twofold.ops import control
from twofold.tensor.tensor import Tensor


def to_values(tree: Any) -> Any:
    """A nest with its tensors as values."""
    return tree_map(lambda leaf: leaf.value if isinstance(leaf, Tensor) else leaf, tree)


def to_tensors(tree: Any) -> Any:
    """A nest with its values as tensors."""
    return tree_map(lambda leaf: Tensor(leaf) if isinstance(leaf, Value) else leaf, tree)


def lift_callable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's function of tensors as a function of values."""
    return lambda *args: to_values(function(*map(to_tensors, args)))


def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
    """``true_fn(*operands)`` if ``pred``, a single bool, else ``false_fn(*operands)``.

    In a compiled program ``pred`` is known only when it runs: both branches are recorded, must return the same nest of
    tensors, shapes and dtypes, and one is run. They may use tensors from outside and assign variables.
    GraphError says which result differs.

    >>> import twofold as tw
    >>> tw.cond(tw.tensor(2.0) > 1, lambda x: x * x, lambda x: -x, tw.tensor(3.0)).item()
    9.0
    """
    branches = (lift_callable(true_fn), lift_callable(false_fn))
    return to_tensors(control.cond(to_values(pred), *branches, *to_values(operands)))


def while_loop(
    cond_fn: Callable[..., Any], body_fn: Callable[..., Any], init: Any, max_iterations: int | None = None
) -> Any:
    """``carry = init; while cond_fn(carry): carry = body_fn(carry)``; returns the last carry.

    ``carry`` is a nest of tensors that keep their shapes and dtypes. Functions of several parameters get the members of
    a tuple one by one. For gradients of compiled loops give ``max_iterations`` where you can: then every carry is kept;
    without it each is computed again from the start on the way back (time grows with the square of the steps).

    >>> import twofold as tw
    >>> tw.while_loop(lambda x, n: x < 100, lambda x, n: (x * 2, n + 1), (tw.tensor(1.0), tw.tensor(0)))[1].item()
    7
    """
    test, body = (lift_callable(_of_carry(f, init)) for f in (cond_fn, body_fn))
    return to_tensors(control.while_loop(test, body, to_values(init), max_iterations))


def _of_carry(function: Callable[..., Any], init: Any) -> Callable[[Any], Any]:
    """A function of the carry: one with as many required parameters as the carry has members gets them one by one."""
    if not isinstance(init, (tuple, list)) or len(init) < 2:
        return function
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (lambda carry: function(*carry)) if len(required) == len(init) else function


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any = None, length: Any = None, reverse: bool = False
) -> tuple[Any, Any]:
    """``carry, y = f(carry, x)`` for each ``x`` along the first dimension of ``xs``; returns (last carry, stacked ys).

    ``xs`` is a nest of tensors with one first dimension, or None with ``length`` given. With ``reverse`` the last x
    comes first; each y stays at its x's place.

    >>> import twofold as tw
    >>> total, running = tw.scan(lambda c, x: (c + x, c + x), tw.tensor(0.0), tw.tensor([1.0, 2.0, 3.0]))
    >>> total.item(), running.tolist()
    (6.0, [1.0, 3.0, 6.0])
    """
    return to_tensors(control.scan(lift_callable(f), to_values(init), to_values(xs), length, reverse))
