"""Operators and methods of ``Tensor``, made from the array functions.

Methods are shaped as PyTorch's users expect: ``axis`` may be given by position or as ``dim``, ``keepdims`` as
``keepdim``, and shapes as separate numbers. (``max`` and ``min`` give values only; positions are ``argmax``'s business.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from twofold.base.errors import GradientError, ShapeError, TraceError
from twofold.base.shapes import show
from twofold.ir import context
from twofold.ir.operators import SLOTS, ArrayOperators
from twofold.ops import arrange, elementwise, movement
from twofold.ops.convert import cast, is_scalar, value
from twofold.tensor.eager import Array
from twofold.tensor.functions import FUNCTIONS, lift
from twofold.tensor.tensor import Tensor, unwrap, wrap
from twofold.tensor.variable import Variable

_UNARY = [
    n
    for n, op in elementwise.ELEMENTWISE.items()
    if n not in ("cast", "where") and len(next(iter(op.samples())).inputs) == 1
]
_REDUCTIONS = (
    "sum prod max min any all mean var std argmax argmin logsumexp count_nonzero cumulative_sum cumulative_prod"
)
_SHAPED = {"reshape": "reshape", "view": "reshape", "permute": "permute_dims", "expand": "broadcast_to", "tile": "tile"}
_SAME = "clip matmul take take_along_axis sort argsort topk flip roll unstack flatten squeeze nonzero tril triu maximum minimum"
_TORCH = {
    "cumsum": "cumulative_sum", "cumprod": "cumulative_prod", "clamp": "clip", "unsqueeze": "expand_dims",
    "unbind": "unstack", "neg": "negative", "logical_not": "logical_not",
}  # fmt: skip
_TORCH_DTYPES = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
    "bfloat16": "bfloat16", "bool": "bool",
}  # fmt: skip


def _by_axis(function: Callable[..., Any]) -> Callable[..., Any]:
    """``x.f(axis)``, ``x.f(dim=axis, keepdim=True)`` as ``f(x, axis=axis, keepdims=True)``."""

    @functools.wraps(function)
    def method(self: Tensor, *axis: Any, **kwargs: Any) -> Any:
        if len(axis) > 1:
            kwargs["axis"] = axis
        elif axis:
            kwargs["axis"] = axis[0]
        return function(self, **_renamed(kwargs))

    return method


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    for theirs, ours in (("dim", "axis"), ("keepdim", "keepdims")):
        if theirs in kwargs:
            kwargs[ours] = kwargs.pop(theirs)
    return kwargs


def _by_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """``x.f(2, 3)`` and ``x.f((2, 3))`` as ``f(x, (2, 3))``."""

    @functools.wraps(function)
    def method(self: Tensor, *shape: Any) -> Any:
        return function(self, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)

    return method


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **_renamed(kwargs))

    return method


def _to_dtype(name: str) -> Callable[..., Any]:
    def method(self: Tensor) -> Tensor:
        return self.to(dtype=name)

    method.__doc__ = f"This tensor as {name}."
    return method


def _in_place(slot: str) -> Callable[..., Any]:
    """``x += y``: the handle gets a new value of the same shape and dtype (a variable is assigned)."""
    operation = getattr(Tensor, f"__{slot}__")

    def method(self: Tensor, other: Any) -> Tensor:
        out = operation(self, other)
        if out is NotImplemented:
            return out
        replace(self, out)
        return self

    method.__name__ = f"__i{slot}__"
    return method


def replace(tensor: Tensor, new: Tensor) -> None:
    """Give a handle another value in place; errors where that would be wrong or lost."""
    if new.shape != tensor.shape:
        raise ShapeError(
            f"in place: the result has shape {show(new.shape)}, the tensor {show(tensor.shape)}; use x = x + y"
        )
    if tensor.requires_grad and tensor.is_leaf and context.grad_enabled:
        raise GradientError(
            "a leaf that requires gradients cannot be changed in place; use detach() or `with tw.no_grad():`"
        )
    if isinstance(tensor, Variable):
        tensor.assign(new)
        return
    made = cast(new.value, tensor.dtype)
    if isinstance(tensor._own, Array) and not isinstance(made, Array):
        raise TraceError(
            "a tensor made outside the compiled function is changed inside it; make it a tw.Variable, or make it inside"
        )
    flag = tensor.requires_grad and tensor.is_leaf
    tensor._own = made
    if flag:
        tensor.requires_grad_()


def _setitem(self: Tensor, index: Any, new: Any) -> None:
    """Replace part of the tensor: the handle gets a new value; recorded computations keep the old one."""
    from twofold.ops.indexing import setitem

    replace(self, Tensor(setitem(self.value, unwrap(index), value(unwrap(new), (self.value,)))))


def _comparison(function: Callable[..., Any]) -> Callable[..., Any]:
    """``x == y`` elementwise; with something that is no array, Python's own answer (not equal)."""
    lifted = lift(function)

    def method(self: Tensor, other: Any) -> Any:
        array_like = isinstance(other, (Tensor, list, tuple)) or is_scalar(other) or hasattr(other, "__array__")
        return lifted(self, other) if array_like else NotImplemented

    return method


def _transposed(self: Tensor) -> Tensor:
    """All dimensions in reverse order (of a matrix: its transpose)."""
    return wrap(movement.permute_dims(self.value, range(self.ndim)[::-1]))


def _matrix_transposed(self: Tensor) -> Tensor:
    """The last two dimensions exchanged."""
    return wrap(movement.matrix_transpose(self.value))


def _clone(self: Tensor) -> Tensor:
    """A new tensor with the same numbers, through which gradients pass."""
    return wrap(elementwise.identity(self.value))


def _norm(self: Tensor, *axis: Any, **kwargs: Any) -> Tensor:
    """Euclidean norm over ``axis``; gradient 0 at 0."""
    from twofold.ops.reduction import norm

    return _by_axis(lift(norm))(self, *axis, **kwargs)


def _same(self: Tensor) -> Tensor:
    """This tensor: memory order is the compiler's business."""
    return self


def _install() -> None:
    for slot in SLOTS:
        setattr(Tensor, slot, lift(getattr(ArrayOperators, slot)))
    for slot in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    ):
        setattr(Tensor, f"__i{slot}__", _in_place(slot))
    methods: dict[str, Any] = {name: _plain(FUNCTIONS[name]) for name in [*_UNARY, *_SAME.split()]}
    methods |= {name: _by_axis(FUNCTIONS[name]) for name in _REDUCTIONS.split()}
    methods |= {name: _by_shape(FUNCTIONS[function]) for name, function in _SHAPED.items()}
    methods |= {name: methods.get(function) or _plain(FUNCTIONS[function]) for name, function in _TORCH.items()}
    methods |= {name: _to_dtype(dtype) for name, dtype in _TORCH_DTYPES.items()}
    methods |= {
        "__eq__": _comparison(elementwise.equal), "__ne__": _comparison(elementwise.not_equal), "__setitem__": _setitem,
        "T": property(_transposed), "mT": property(_matrix_transposed), "t": _transposed, "clone": _clone,
        "contiguous": _same, "transpose": _plain(lift(arrange.transpose)), "norm": _norm,
        "astype": FUNCTIONS["astype"], "numel": lambda self: self.size, "dim": lambda self: self.ndim,
        "squeeze": _squeeze, "is_floating_point": lambda self: self.dtype.is_floating, "unsqueeze": _unsqueeze,
    }  # fmt: skip
    for name, method in methods.items():
        setattr(Tensor, name, method)


def _squeeze(self: Tensor, axis: Any = None, *, dim: Any = None) -> Tensor:
    """Without dimensions of size one: the named ones, or all."""
    axis = dim if axis is None else axis
    axes = tuple(i for i, d in enumerate(self.shape) if d == 1) if axis is None else axis
    return FUNCTIONS["squeeze"](self, axes)


def _unsqueeze(self: Tensor, axis: int | None = None, *, dim: int = 0) -> Tensor:
    """With a dimension of size one inserted at ``axis``."""
    return FUNCTIONS["expand_dims"](self, axis=dim if axis is None else axis)


_install()
