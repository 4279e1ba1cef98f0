"""custom_vjp: a function with a gradient of one's own.

A call runs the user's forward function and leaves one node, ``custom_vjp(args, results, residuals) -> results``, whose
gradient is the user's backward function. The forward function's own record stays behind the residuals, so that a
second differentiation goes through both functions. ``simplify`` removes the node once gradients are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from twofold.autodiff.gradients import zeros_like
from twofold.base.errors import GradientError, ShapeError
from twofold.base.shapes import show
from twofold.base.tree import flatten, paths, unflatten
from twofold.ir import Op, Spec, Value, bind, context, current_builder, register
from twofold.ops.convert import value


def _infer(*specs: Spec, args: int, results: int, rule: Any) -> tuple[Spec, ...]:
    return specs[args : args + results]


def _vjp(gs: Sequence[Any], ys: Any, *operands: Value, args: int, results: int, rule: Any) -> list[Value | None]:
    if not callable(rule):
        raise GradientError(f"the gradient rule {rule!r} of a custom_vjp is not part of a graph's text or file")
    found = rule(operands[args + results :], ys, gs)
    return [*found, *[None] * (len(operands) - args)]


CUSTOM = register(
    Op(
        "custom_vjp", _infer, lambda *xs, args, results, rule: xs[args : args + results], _vjp,
        kind="boundary", multi=True, sparse=True, pure=False, doc="Results with a gradient rule given by the user.",
    )
)  # fmt: skip


class CustomVjp:
    """A function of nests of values and the pair (forward, backward) that defines its gradient; see ``defvjp``."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self.name = f"custom_vjp {getattr(function, '__name__', 'function')!r}"
        self.function = function
        self.forward: Callable[..., Any] | None = None
        self.backward: Callable[..., Any] | None = None

    def defvjp(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        """``forward(*args) -> result, residuals``; ``backward(residuals, cotangent) -> one cotangent per argument``
        (None for an argument without a gradient)."""
        self.forward, self.backward = forward, backward

    def __call__(self, *args: Any) -> Any:
        if self.forward is None:
            raise GradientError(f"{self.name} has no rule yet; call its defvjp(forward, backward)")
        inputs = [leaf for leaf in flatten(args)[0] if isinstance(leaf, Value)]
        tracked = context.grad_enabled and any(v.requires_grad for v in inputs)
        if not tracked and current_builder(inputs) is None:
            return self.function(*args)
        pair = self.forward(*args)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise GradientError(f"{self.name}: forward returns {type(pair).__name__}; expected (result, residuals)")
        results, form = flatten(pair[0])
        results = [value(r, tuple(inputs)) for r in results]
        kept, kept_form = flatten(pair[1])
        places = [i for i, k in enumerate(kept) if isinstance(k, Value)]
        residuals = [kept[i] for i in places]
        rest = [None if isinstance(k, Value) else k for k in kept]  # the node holds the values, the rule the others

        def rule(residuals: Sequence[Value], ys: Sequence[Value], gs: Sequence[Value | None]) -> list[Value | None]:
            gs = [zeros_like(y) if g is None and y.dtype.is_floating else g for g, y in zip(gs, ys)]
            filled = list(rest)
            for i, residual in zip(places, residuals):
                filled[i] = residual
            given = self.backward(unflatten(kept_form, filled), unflatten(form, gs))  # type: ignore[misc]
            return self._cotangents(given, args)

        rule.__name__ = getattr(self.backward, "__name__", "backward")
        outputs = bind(CUSTOM, *inputs, *results, *residuals, args=len(inputs), results=len(results), rule=rule)
        return unflatten(form, outputs)

    def _cotangents(self, given: Any, args: Sequence[Any]) -> list[Value | None]:
        """What ``backward`` returned, one for each value among the arguments, checked."""
        given = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if len(given) != len(args):
            raise GradientError(
                f"{self.name}: backward returns {len(given)} cotangents; expected one for each of {len(args)}"
            )
        out: list[Value | None] = []
        for n, (cotangent, argument) in enumerate(zip(given, args)):
            leaves, structure = flatten(argument)
            parts = [None] * len(leaves) if cotangent is None else _parts(cotangent, structure)
            if len(parts) != len(leaves):
                raise GradientError(f"{self.name}: cotangent {n} has another structure than argument {n}")
            for path, g, x in zip(paths(structure, f"argument {n}"), parts, leaves):
                if isinstance(x, Value):
                    out.append(self._checked(g, x, path))
        return out

    def _checked(self, g: Any, x: Value, path: str) -> Value | None:
        if g is None or not x.dtype.is_floating:
            return None
        g = value(g, (x,))
        if g.shape not in (x.shape, ()):
            raise ShapeError(
                f"{self.name}: the cotangent of {path} has shape {show(g.shape)}; expected {show(x.shape)}"
            )
        return g if g.shape == x.shape else zeros_like(x) + g


def _parts(cotangent: Any, structure: Any) -> list[Any]:
    """Leaves of a cotangent, None included, in the argument's structure."""
    if structure.kind == "leaf" or structure.kind is None:
        return [cotangent] if structure.kind == "leaf" else []
    children = list(cotangent.values()) if isinstance(cotangent, dict) else list(cotangent)
    return [p for child, part in zip(structure.children, children) for p in _parts(part, child)]
