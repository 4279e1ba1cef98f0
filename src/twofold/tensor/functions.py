"""The public array functions: each op function, taking and giving tensors, under the array API standard's names.

``FUNCTIONS`` is the table; ``twofold`` exports all of it, and ``tensor.methods`` makes methods from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from twofold.ops import arrange, creation, elementwise, gather, matmul, movement, reduction, sets, sorting
from twofold.ops.convert import value
from twofold.tensor.tensor import Tensor, unwrap, wrap


def lift(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` over values as a function over tensors; tensors may stand in lists and tuples."""

    @functools.wraps(function)
    def public(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            kwargs = {k: unwrap(v) for k, v in kwargs.items()}
        return wrap(function(*map(unwrap, args), **kwargs))

    return public


# Names that Python or its builtins have taken: public name -> name in the ops module
_SPELLED = {"abs": "abs_", "pow": "pow_", "round": "round_"}

# Which public functions each family of ops gives
_FAMILIES: dict[ModuleType, str] = {
    elementwise: " ".join(n for n in elementwise.ELEMENTWISE if n != "cast") + " positive clip conj real imag",
    movement: "reshape permute_dims broadcast_to concat stack expand_dims squeeze flatten matrix_transpose pad",
    arrange: "flip roll repeat tile moveaxis unstack broadcast_arrays meshgrid tril triu eye linspace count_nonzero diff "
    "cumulative_sum cumulative_prod",
    reduction: "sum prod max min any all mean var std argmax argmin logsumexp",
    matmul: "matmul vecdot tensordot outer",
    gather: "take take_along_axis gather_nd scatter_nd scatter_add one_hot",
    sorting: "sort argsort topk searchsorted",
    sets: "nonzero unique_all unique_counts unique_inverse unique_values",
    creation: "full arange",
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: lift(getattr(module, _SPELLED.get(name, name))) for module, names in _FAMILIES.items() for name in names.split()
}


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a function written over tensors to the table."""
    FUNCTIONS[function.__name__] = function
    return function


@public
def zeros(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array of zeros; float32 unless ``dtype`` is given."""
    return Tensor(creation.full(shape, 0.0, dtype or "float32", device=device))


@public
def ones(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array of ones; float32 unless ``dtype`` is given."""
    return Tensor(creation.full(shape, 1.0, dtype or "float32", device=device))


@public
def empty(shape: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array whose numbers do not matter (they are zeros: nothing here reads memory it has not written)."""
    return zeros(shape, dtype=dtype, device=device)


@public
def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array of the shape and dtype of ``x``, filled with one value."""
    near = value(unwrap(x))
    return Tensor(creation.full(near.shape, unwrap(fill_value), dtype or near.dtype, device=device, like=near))


@public
def zeros_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros of the shape and dtype of ``x``."""
    return full_like(x, 0, dtype=dtype, device=device)


@public
def ones_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones of the shape and dtype of ``x``."""
    return full_like(x, 1, dtype=dtype, device=device)


@public
def empty_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Tensor:
    """An array of the shape and dtype of ``x`` whose numbers do not matter."""
    return full_like(x, 0, dtype=dtype, device=device)


@public
def astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Tensor:
    """``x`` in another dtype (and on another device). Values never change, so ``copy`` decides only whether an equal
    tensor may be the same object."""
    out = x.to(dtype=dtype, device=device) if isinstance(x, Tensor) else wrap(value(x)).to(dtype=dtype, device=device)
    return Tensor(out.value) if copy and out is x else out
