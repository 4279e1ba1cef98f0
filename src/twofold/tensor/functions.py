"""The public array functions: each op function, taking and giving tensors. Methods of ``Tensor`` are made from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from twofold.ir import Value
from twofold.ir.operators import SLOTS, ArrayOperators
from twofold.ops import creation, elementwise, movement, reduction
from twofold.ops.convert import value
from twofold.tensor.tensor import Tensor, unwrap, wrap


def lift(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` over values as a function over tensors; tensors may stand in lists and tuples."""

    @functools.wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        return wrap(function(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()}))

    return public


def setitem(x: Value, index: Any, new: Any) -> Value:
    """``x`` with ``x[index]`` replaced."""
    raise NotImplementedError


for _slot in SLOTS:
    setattr(Tensor, _slot, lift(getattr(ArrayOperators, _slot)))
_EQ = lift(elementwise.equal)
_NE = lift(elementwise.not_equal)
Tensor.__eq__ = lambda self, other: _EQ(self, other)  # type: ignore[assignment,method-assign,misc]
Tensor.__ne__ = lambda self, other: _NE(self, other)  # type: ignore[assignment,method-assign,misc]

_ = (creation, movement, reduction, value)
