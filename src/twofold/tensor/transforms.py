"""Transforms of functions of tensors: ``checkpoint``, ``custom_vjp``, ``jvp``, ``hvp``.

The transforms work on values and are in ``twofold.autodiff``; here tensors are exchanged for values and back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from twofold import autodiff
from twofold.autodiff.check import INTERFACE
from twofold.base.errors import GradientError, ShapeError
from twofold.base.shapes import show
from twofold.base.tree import flatten, tree_map, unflatten
from twofold.ir import Value, context, grad_mode
from twofold.tensor.gradients import _settled, _tracked, grad
from twofold.tensor.tensor import Tensor, asarray


def to_values(tree: Any) -> Any:
    """A nest with its tensors as values."""
    return tree_map(lambda leaf: leaf.value if isinstance(leaf, Tensor) else leaf, tree)


def to_tensors(tree: Any) -> Any:
    """A nest with its values as tensors."""
    return tree_map(lambda leaf: Tensor(leaf) if isinstance(leaf, Value) else leaf, tree)


def over_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's function of nests of tensors as one of nests of values."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return to_values(function(*map(to_tensors, args), **to_tensors(kwargs)))

    return run


INTERFACE.append((Tensor, lambda result: [asarray(leaf).value for leaf in flatten(result)[0]]))


def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the same results and gradients, that is computed again for its gradients instead of being kept.

    The memory of what it computes inside is free after the call; the price is a second run in ``backward``. It may be a
    module or any function of nests of tensors, may use tensors from outside (they get their gradients), draw random
    numbers (the same both times) and update batch-norm statistics (once).

    >>> import twofold as tw
    >>> x = tw.tensor([1.0, 2.0], requires_grad=True)
    >>> tw.checkpoint(lambda v: tw.exp(v * v))(x).sum().backward()
    >>> [round(g, 3) for g in x.grad.tolist()]
    [5.437, 218.393]
    """
    run = autodiff.checkpoint(over_values(function))

    @functools.wraps(function, updated=())
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return to_tensors(run(*to_values(args), **to_values(kwargs)))

    return checkpointed


class custom_vjp:
    """A function with a gradient of its own, given by ``defvjp``.

    ``forward(*args)`` returns the result and whatever the gradient needs; ``backward(residuals, cotangent)`` returns
    one cotangent per argument (None where there is none). Higher derivatives go through both.

    >>> import twofold as tw
    >>> @tw.custom_vjp
    ... def clipped(x):
    ...     return x * 1.0
    >>> clipped.defvjp(lambda x: (x * 1.0, None), lambda residuals, g: (tw.clip(g, -1.0, 1.0),))
    >>> tw.grad(lambda x: clipped(x) * 5.0)(tw.tensor(2.0)).item()
    1.0
    """

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function, updated=())
        self._inner = autodiff.CustomVjp(over_values(function))

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """Set the two functions of the gradient rule."""
        self._inner.defvjp(over_values(forward), over_values(backward))

    def __call__(self, *args: Any) -> Any:
        return to_tensors(self._inner(*to_values(args)))


def jvp(function: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """``function(*primals)``, and how fast it changes when the primals move along the tangents.

    ``primals`` and ``tangents`` are tuples of equal nests. The second result has the structure of the first.

    >>> import twofold as tw
    >>> y, dy = tw.jvp(lambda x: x * x, (tw.tensor([1.0, 2.0]),), (tw.tensor([1.0, 10.0]),))
    >>> dy.tolist()
    [2.0, 40.0]
    """
    primals, tangents = (p if isinstance(p, (tuple, list)) else (p,) for p in (primals, tangents))
    outer = context.grad_enabled
    with grad_mode(True):
        call, xs, structure = _tracked(primals, range(len(primals)))
        result = function(*call)
        directions = _directions(tangents, xs, structure)
        leaves, form = flatten(result)
        moved = autodiff.push_forward([asarray(leaf).value for leaf in leaves], xs, directions)
    change = unflatten(form, list(map(Tensor, moved)))
    return _settled(result, xs, outer), _settled(change, xs, outer)


def _directions(tangents: Sequence[Any], xs: Sequence[Value], structure: Any) -> list[Value]:
    leaves, form = flatten(tuple(tangents))
    if form.children != structure.children:
        raise GradientError(
            "jvp: the tangents have another structure than the primals; expected one tangent per primal"
        )
    values = [asarray(leaf).value for leaf in leaves]
    for t, x in zip(values, xs):
        if t.shape != x.shape:
            raise ShapeError(f"jvp: a tangent has shape {show(t.shape)}; its primal has {show(x.shape)}")
    return values


def hvp(function: Callable[..., Any], primals: Sequence[Any], vectors: Sequence[Any]) -> Any:
    """The Hessian of a scalar ``function`` at ``primals``, applied to ``vectors``: one result per primal.

    >>> import twofold as tw
    >>> tw.hvp(lambda x: (x * x * x).sum(), (tw.tensor([1.0, 2.0]),), (tw.tensor([1.0, 1.0]),))[0].tolist()
    [6.0, 12.0]
    """
    primals, vectors = (p if isinstance(p, (tuple, list)) else (p,) for p in (primals, vectors))
    places = tuple(range(len(primals)))

    def along(*args: Any) -> Any:
        gs, vs = (flatten(tree)[0] for tree in (grad(function, places)(*args), tuple(vectors)))
        total: Any = 0.0
        for g, v in zip(gs, vs, strict=True):
            total = (g * v).sum() + total
        return total

    return grad(along, places)(*primals)
