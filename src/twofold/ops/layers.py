"""What layers compute, with the arguments of PyTorch: linear, convolutions, poolings, dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twofold.base.dims import Sym
from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import show
from twofold.ir import Value
from twofold.ops.composite import composite
from twofold.ops.conv import conv, conv_input_grad
from twofold.ops.convert import cast, value
from twofold.ops.elementwise import where
from twofold.ops.matmul import matmul
from twofold.ops.movement import concat, matrix_transpose, slice_along
from twofold.ops.normalization import per_channel
from twofold.ops.pool import avg_pool, max_pool
from twofold.ops.precision import beside
from twofold.ops.random import bernoulli
from twofold.ops.reduction import max as max_
from twofold.ops.reduction import mean
from twofold.ops.windows import Ints, Pads, extent


def each(argument: int | Sequence[int], rank: int, what: str) -> Ints:
    """One number per spatial dimension, from an int for all or a sequence of ``rank``."""
    out = (int(argument),) * rank if hasattr(argument, "__index__") else tuple(int(a) for a in argument)
    if len(out) != rank:
        raise ArgumentError(f"{what}={argument}; expected an int, or {rank} ints")
    return out


def pads(argument: Any, rank: int, window: Ints, strides: Ints, dilation: Ints) -> Pads:
    """``(low, high)`` per spatial dimension, from an int, ints, such pairs, ``"same"`` or ``"valid"``."""
    if argument == "valid":
        return ((0, 0),) * rank
    if argument == "same":
        if set(strides) != {1}:
            raise ArgumentError(f"padding='same' needs stride 1; got stride {strides}")
        totals = [int(extent(k, d)) - 1 for k, d in zip(window, dilation)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(argument, str):
        raise ArgumentError(f"padding={argument!r}; expected an int, ints, (low, high) pairs, 'same' or 'valid'")
    if not hasattr(argument, "__index__") and any(isinstance(p, (tuple, list)) for p in argument):
        if len(argument) != rank or any(len(p) != 2 for p in argument):
            raise ArgumentError(f"padding={argument}; expected {rank} pairs (low, high)")
        return tuple((int(low), int(high)) for low, high in argument)
    return tuple((p, p) for p in each(argument, rank, "padding"))


@composite
def linear(x: Any, weight: Any, bias: Any = None) -> Value:
    """``x @ weight.T + bias`` over the last dimension of ``x``; ``weight`` is ``(out, in)``."""
    x, weight = value(x), value(weight)
    if not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear: x has {x.shape[-1] if x.ndim else 'no'} features (shape {show(x.shape)}), weight expects "
            f"{weight.shape[1]} (shape {show(weight.shape)}); check in_features"
        )
    y = matmul(x, matrix_transpose(weight))
    return y if bias is None else y + beside(value(bias), y)


# ---- convolutions ----------------------------------------------------------------------------------------------------


def _convolution(rank: int) -> Callable[..., Value]:
    def function(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Value:
        x, weight = value(x), value(weight)
        strides, dilated = each(stride, rank, "stride"), each(dilation, rank, "dilation")
        _check_rank(function.__name__, rank, x, weight)
        around = pads(padding, rank, tuple(weight.shape[2:]), strides, dilated)
        y = conv(x, weight, strides=strides, padding=around, dilation=dilated, groups=groups)
        return y if bias is None else y + beside(per_channel(bias, y.ndim), y)

    function.__name__ = function.__qualname__ = f"conv{rank}d"
    function.__doc__ = (
        f"Cross-correlation of ``x`` (N, C, {rank} spatial) with ``weight`` (out, C/groups, {rank} kernel sizes). "
        "``padding`` is an int, ints, (low, high) pairs, 'same' or 'valid'."
    )
    return composite(function)


def _check_rank(name: str, rank: int, x: Value, weight: Value) -> None:
    if x.ndim != rank + 2 or weight.ndim != rank + 2:
        raise ShapeError(
            f"{name}: x has shape {show(x.shape)}, weight {show(weight.shape)}; expected {rank + 2} dimensions each: "
            f"(N, C, {rank} spatial) and (out, in/groups, {rank} kernel sizes)"
        )


def _transposed(rank: int) -> Callable[..., Value]:
    def function(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, dilation: Any = 1,
    ) -> Value:  # fmt: skip
        x, weight = value(x), value(weight)
        _check_rank(function.__name__, rank, x, weight)
        strides, dilated = each(stride, rank, "stride"), each(dilation, rank, "dilation")
        extra = each(output_padding, rank, "output_padding")
        kernel: Ints = tuple(weight.shape[2:])
        around = pads(padding, rank, kernel, strides, dilated)
        if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilated)):
            raise ArgumentError(f"output_padding={output_padding} must be smaller than stride or dilation")
        columns = zip(x.shape[2:], kernel, strides, dilated, around, extra)
        shape = tuple((n - 1) * s + int(extent(k, d)) - low - high + e for n, k, s, d, (low, high), e in columns)
        y = conv_input_grad(
            x, weight, strides=strides, padding=around, dilation=dilated, groups=groups, input_shape=shape
        )
        return y if bias is None else y + beside(per_channel(bias, y.ndim), y)

    function.__name__ = function.__qualname__ = f"conv_transpose{rank}d"
    function.__doc__ = (
        f"The transpose of conv{rank}d in its input: ``weight`` is (in, out/groups, {rank} kernel sizes); "
        "``output_padding`` chooses among the sizes that stride merges."
    )
    return composite(function)


conv1d, conv2d, conv3d = map(_convolution, (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_transposed, (1, 2, 3))


# ---- poolings --------------------------------------------------------------------------------------------------------


def _batched(name: str, rank: int, x: Any) -> Value:
    x = value(x)
    if x.ndim != rank + 2:
        raise ShapeError(
            f"{name}: x has shape {show(x.shape)}; expected {rank + 2} dimensions (N, C, {rank} spatial); "
            "add a batch dimension with tw.expand_dims(x, axis=0)"
        )
    return x


def _max_pooling(rank: int) -> Callable[..., Value]:
    def function(
        x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Value:
        x, window = _batched(function.__name__, rank, x), each(kernel_size, rank, "kernel_size")
        strides = window if stride is None else each(stride, rank, "stride")
        dilated = each(dilation, rank, "dilation")
        around = pads(padding, rank, window, strides, dilated)
        return max_pool(x, window=window, strides=strides, padding=around, dilation=dilated, ceil_mode=bool(ceil_mode))

    function.__name__ = function.__qualname__ = f"max_pool{rank}d"
    function.__doc__ = (
        f"Largest element of each window of ``x`` (N, C, {rank} spatial); ``stride`` defaults to the window."
    )
    return function


def _avg_pooling(rank: int) -> Callable[..., Value]:
    def function(
        x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Value:  # fmt: skip
        x, window = _batched(function.__name__, rank, x), each(kernel_size, rank, "kernel_size")
        strides = window if stride is None else each(stride, rank, "stride")
        around = pads(padding, rank, window, strides, (1,) * rank)
        return avg_pool(
            x, window=window, strides=strides, padding=around,
            ceil_mode=bool(ceil_mode), include_pad=bool(count_include_pad),
        )  # fmt: skip

    function.__name__ = function.__qualname__ = f"avg_pool{rank}d"
    function.__doc__ = (
        f"Mean of each window of ``x`` (N, C, {rank} spatial). Padding counts as zeros if ``count_include_pad``, "
        "else not at all; what ceil mode hangs over never counts."
    )
    return function


max_pool1d, max_pool2d, max_pool3d = map(_max_pooling, (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = map(_avg_pooling, (1, 2, 3))


def _adaptive(name: str, rank: int, pool: Callable[..., Value], reduce: Callable[..., Value]) -> Callable[..., Value]:
    def function(x: Any, output_size: Any) -> Value:
        x = _batched(function.__name__, rank, x)
        sizes = (output_size,) * rank if isinstance(output_size, int) else tuple(output_size)
        if len(sizes) != rank:
            raise ArgumentError(f"{function.__name__}: output_size={output_size}; expected an int, or {rank} ints")
        if any(s is not None and (not hasattr(s, "__index__") or s < 1) for s in sizes):
            raise ArgumentError(f"{function.__name__}: output_size={output_size}; expected sizes of at least 1, or None")
        wanted = [n if s is None else s for n, s in zip(x.shape[2:], sizes)]
        if all(s == 1 for s in wanted):
            return reduce(x, axis=tuple(range(2, rank + 2)), keepdims=True)
        if all(isinstance(n, int) and n % s == 0 for n, s in zip(x.shape[2:], wanted)):
            window = tuple(n // s for n, s in zip(x.shape[2:], wanted))
            return x if set(window) == {1} else pool(x, window)
        for axis, size in enumerate(wanted, 2):
            x = _adapt(function.__name__, x, axis, size, reduce)
        return x

    function.__name__ = function.__qualname__ = f"adaptive_{name}_pool{rank}d"
    function.__doc__ = (
        f"{name} pooling of ``x`` (N, C, {rank} spatial) to ``output_size``: output i of n comes from the inputs "
        "floor(i*size/n) up to ceil((i+1)*size/n). None keeps a dimension."
    )
    return function


def _adapt(name: str, x: Value, axis: int, size: int, reduce: Callable[..., Value]) -> Value:
    n = x.shape[axis]
    if n == size:
        return x
    if isinstance(n, Sym):
        raise ShapeError(
            f"{name}: dimension {axis} of {show(x.shape)} is symbolic; expected a number, or output size 1"
        )
    bounds = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    return concat([reduce(slice_along(x, axis, a, b), axis=axis, keepdims=True) for a, b in bounds], axis)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (
    _adaptive("avg", r, p, mean) for r, p in ((1, avg_pool1d), (2, avg_pool2d), (3, avg_pool3d))
)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = (
    _adaptive("max", r, p, max_) for r, p in ((1, max_pool1d), (2, max_pool2d), (3, max_pool3d))
)


# ---- dropout ---------------------------------------------------------------------------------------------------------


@composite
def dropout(x: Any, state: Value, p: float, *, shared_axes: int = 0) -> Value:
    """``x`` with elements zeroed with probability ``p`` and the rest divided by ``1 - p`` (Srivastava et al. 2014).

    ``state`` is that of a random generator. With ``shared_axes`` the last dimensions share one decision: 2 drops whole
    maps of ``(N, C, H, W)``.
    """
    x = value(x)
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(f"dropout: p={p}; expected a probability in [0, 1]")
    if p == 1.0:
        return x * 0.0
    shape = (*x.shape[: x.ndim - shared_axes], *(1,) * shared_axes)
    return where(bernoulli(state, 1.0 - p, shape), x * (1.0 / (1.0 - p)), cast(value(0.0, (x,)), x.dtype))


__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "dropout", "linear", "max_pool1d", "max_pool2d", "max_pool3d",
]  # fmt: skip
