"""Gradients of tensors and of functions of tensors: ``gradients``, ``grad``, ``value_and_grad``, ``vjp``.

All are one call of the gradient algorithm in ``twofold.autodiff``. The functional forms nest: inside, each argument is a
fresh leaf, or, if it is tracked already (an outer ``grad``, a graph being built), a copy linked to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from twofold import autodiff, ops
from twofold.base.errors import ArgumentError, GradientError, ShapeError
from twofold.base.shapes import show
from twofold.base.tree import Structure, flatten, unflatten
from twofold.ir import Value, context, current_builder, grad_mode
from twofold.tensor.eager import Array
from twofold.tensor.tensor import Tensor, asarray, wrap


def no_grad() -> AbstractContextManager[None]:
    """Nothing computed in the block is recorded for gradients. Also a decorator: ``@tw.no_grad()``.

    >>> import twofold as tw
    >>> x = tw.tensor([1.0], requires_grad=True)
    >>> with tw.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """
    return grad_mode(False)


def enable_grad() -> AbstractContextManager[None]:
    """Gradients are recorded in the block, also inside ``no_grad``."""
    return grad_mode(True)


def gradients(ys: Any, xs: Any, grad_ys: Any = None) -> Any:
    """Gradients of ``sum(ys * grad_ys)`` with respect to ``xs``: one for each, in the nest that ``xs`` has.

    ``ys``, ``xs``: a tensor, or a nest of them (list, tuple, dict). ``grad_ys``: like ``ys``; ones by default. The result
    is None for an x on which no y depends. Works on eager and on symbolic tensors, and may be applied to its own
    results; it leaves ``.grad`` alone.

    >>> import twofold as tw
    >>> x = tw.tensor(3.0, requires_grad=True)
    >>> g = tw.gradients(x * x, x)
    >>> g.item(), tw.gradients(g, x).item()
    (6.0, 2.0)
    """
    y_values = [_value(y, "ys") for y in flatten(ys)[0]]
    x_leaves, structure = flatten(xs)
    x_values = [_value(x, "xs") for x in x_leaves]
    for place, x in enumerate(x_values):
        if isinstance(x, Array) and not x.requires_grad:
            raise GradientError(
                f"gradients: xs[{place}] ({x.spec}) does not require gradients, so what was computed from it is not recorded; "
                "make it with requires_grad=True"
            )
    seeds = None if grad_ys is None else [None if g is None else asarray(g).value for g in _like(grad_ys, ys)]
    found = autodiff.gradients(y_values, x_values, seeds, create_graph=context.grad_enabled)
    return _around(structure, found)


def value_and_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """``function`` returning a scalar, as a function returning ``(value, gradient)``.

    The gradient is with respect to the positional argument(s) ``argnums``, each a tensor or a nest of tensors, and has
    their structure (a tuple for several). With ``has_aux`` the function returns ``(scalar, anything)`` and the result is
    ``((scalar, anything), gradient)``.

    >>> import twofold as tw
    >>> tw.value_and_grad(lambda x: (x * x).sum())(tw.tensor([1.0, 2.0]))[1].tolist()
    [2.0, 4.0]
    """
    several = not isinstance(argnums, int)
    numbers: tuple[int, ...] = tuple(argnums) if not isinstance(argnums, int) else (argnums,)

    @functools.wraps(function)
    def with_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for n in numbers:
            if not -len(args) <= n < len(args):
                raise ArgumentError(
                    f"grad: argument {n} was asked for, but {len(args)} positional arguments were given"
                )
        places = [n % len(args) for n in numbers]
        outer = context.grad_enabled
        with grad_mode(True):
            call, xs, structure = _tracked(args, places)
            result = function(*call, **kwargs)
        y = result[0] if has_aux else result
        _check_scalar(y)
        found = autodiff.gradients([y.value], xs, create_graph=outer and _differentiable([y.value], xs))
        filled = [ops.full(x.shape, 0.0, x.dtype, like=x) if g is None else g for g, x in zip(found, xs)]
        gs = unflatten(structure, list(map(wrap, filled)))
        return _settled(result, xs, outer), gs if several else gs[0]

    return with_gradient


def grad(function: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """The gradient of a scalar ``function`` as a function; nested calls give higher derivatives.

    See ``value_and_grad``; with ``has_aux`` the result is ``(gradient, anything)``.

    >>> import twofold as tw
    >>> tw.grad(tw.grad(lambda x: x * x * x))(tw.tensor(2.0)).item()
    12.0
    """
    both = value_and_grad(function, argnums, has_aux)

    @functools.wraps(function)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, g = both(*args, **kwargs)
        return (g, value[1]) if has_aux else g

    return gradient


def vjp(function: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """``function(*primals)``, and the function that pulls a cotangent of the result back to one for each primal.

    >>> import twofold as tw
    >>> y, pull = tw.vjp(lambda x: x * x, tw.tensor([1.0, 2.0]))
    >>> pull(tw.tensor([1.0, 10.0]))[0].tolist()
    [2.0, 40.0]
    """
    outer = context.grad_enabled
    with grad_mode(True):
        call, xs, structure = _tracked(primals, range(len(primals)))
        result = function(*call)
    leaves = flatten(result)[0]
    ys = [_value(y, "the results of the function") for y in leaves]

    def pull_back(cotangents: Any) -> tuple[Any, ...]:
        seeds: list[Value | None] = [asarray(g).value for g in _like(cotangents, result)]
        create = outer and (_differentiable(ys, xs) or any(s is not None and s.requires_grad for s in seeds))
        found = autodiff.gradients(ys, xs, seeds, create_graph=create)
        filled = [ops.full(x.shape, 0.0, x.dtype, like=x) if g is None else g for g, x in zip(found, xs)]
        return unflatten(structure, list(map(wrap, filled)))

    return _settled(result, xs, outer), pull_back


# ---- inside ----------------------------------------------------------------------------------------------------------


def _tracked(args: Sequence[Any], places: Sequence[int]) -> tuple[list[Any], list[Value], Structure]:
    """The arguments with those at ``places`` tracked afresh, the tracked values, and the nest they stand in."""
    call = list(args)
    leaves, structure = flatten(tuple(args[p] for p in places))
    xs = [_fresh(leaf) for leaf in leaves]
    for place, nest in zip(places, unflatten(structure, [Tensor(x) for x in xs])):
        call[place] = nest
    return call, xs, structure


def _fresh(leaf: Any) -> Value:
    value = asarray(leaf).value
    if not value.dtype.is_floating:
        raise GradientError(
            f"gradients are with respect to floating tensors; got a {value.spec} argument; cast it or choose argnums"
        )
    if value.requires_grad or current_builder((value,)) is not None:
        return ops.identity(value)
    out = Array(value.spec, value.buffer, value.device)  # type: ignore[attr-defined]
    out.requires_grad = True
    return out


def _differentiable(ys: list[Value], xs: Sequence[Value]) -> bool:
    """Whether the gradients can be asked for theirs: something besides our own fresh leaves is tracked."""
    if current_builder(ys) is not None:
        return True
    ours = {x.key for x in xs if x.producer is None}
    return any(leaf.key not in ours for leaf in autodiff.leaves(ys))


def _settled(result: Any, xs: Sequence[Value], outer: bool) -> Any:
    """The result for the caller, to whom our fresh leaves mean nothing: tensors that depend on nothing else are plain."""
    leaves, structure = flatten(result)
    return unflatten(structure, [_plain(leaf, xs, outer) for leaf in leaves])


def _plain(leaf: Any, xs: Sequence[Value], outer: bool) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.requires_grad or (outer and _differentiable([leaf.value], xs)):
        return leaf
    return leaf.detach()


def _check_scalar(y: Any) -> None:
    if not isinstance(y, Tensor):
        raise GradientError(
            f"grad: the function returned a {type(y).__name__}; expected a tensor with one element (has_aux for more)"
        )
    if y.size != 1:
        raise GradientError(
            f"grad: the function returned shape {show(y.shape)}; expected one element; reduce it with .sum() or .mean()"
        )


def _value(x: Any, what: str) -> Value:
    if not isinstance(x, (Tensor, Value)):
        raise GradientError(f"gradients: {what} hold a {type(x).__name__}; expected tensors")
    return x.value if isinstance(x, Tensor) else x


def _like(given: Any, expected: Any) -> list[Any]:
    """Leaves of ``given``, one for each leaf of ``expected``."""
    leaves = list(given) if isinstance(given, (list, tuple)) else flatten(given)[0]
    if isinstance(given, dict) or (
        isinstance(given, (list, tuple)) and any(isinstance(g, (list, tuple, dict)) for g in given)
    ):
        leaves = flatten(given)[0]
    count = len(flatten(expected)[0])
    if len(leaves) != count:
        raise ShapeError(f"gradients: {len(leaves)} cotangents were given for {count} results; expected one for each")
    return leaves


def _around(structure: Structure, found: Sequence[Value | None]) -> Any:
    return unflatten(structure, [None if g is None else wrap(g) for g in found])
