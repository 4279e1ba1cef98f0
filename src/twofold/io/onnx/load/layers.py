"""Convolutions, pools, matrix products."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from twofold.base.dims import Dim
from twofold.base.dtypes import float64, int64
from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.base.shapes import product
from twofold.io.onnx.load.elementwise import like
from twofold.io.onnx.load.rows import ROWS, row
from twofold.ir import Value, bind
from twofold.ops import cast
from twofold.ops import elementwise as el
from twofold.ops import reduction as red
from twofold.ops.conv import conv, conv_input_grad
from twofold.ops.creation import iota
from twofold.ops.matmul import matmul
from twofold.ops.movement import pad, permute_dims, reshape
from twofold.ops.normalization import per_channel
from twofold.ops.pool import MAX_POOL_PICK, avg_pool, max_pool
from twofold.ops.windows import extent

# ---- windows ---------------------------------------------------------------------------------------------------------


class Window:
    """The window attributes of a convolution or pool: kernel, strides, dilation, and pads as (low, high) pairs."""

    def __init__(self, c: Any, spatial: Any, kernel: Any):
        rank = len(spatial)
        self.kernel = tuple(kernel)
        self.strides = tuple(c.attr("strides", None) or (1,) * rank)
        self.dilation = tuple(c.attr("dilations", None) or (1,) * rank)
        if not len(self.kernel) == len(self.strides) == len(self.dilation) == rank:
            raise FormatError(
                f"kernel {self.kernel}, strides {self.strides}, dilations {self.dilation}: expected {rank} of each"
            )
        if min(self.strides, default=1) < 1 or min(self.dilation, default=1) < 1:
            raise FormatError(f"strides {self.strides} and dilations {self.dilation}: expected at least 1")
        self.auto = c.attr("auto_pad", "NOTSET")
        self.padding = self._padding(c, spatial, rank)

    def _padding(self, c: Any, spatial: Any, rank: int) -> tuple[tuple[int, int], ...]:
        if self.auto in ("NOTSET", ""):
            pads = c.attr("pads", None) or [0] * (2 * rank)
            if len(pads) != 2 * rank:
                raise FormatError(f"pads {pads}: expected {2 * rank} numbers")
            return tuple(zip(pads[:rank], pads[rank:]))
        if self.auto == "VALID" or c.op == "ConvTranspose":
            return ((0, 0),) * rank
        return tuple(map(self._same, spatial, self.kernel, self.strides, self.dilation))

    def _same(self, size: Dim, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
        """Pads that give ceil(size / stride) positions; the odd one above (SAME_UPPER) or below."""
        span = int(extent(kernel, dilation))
        if stride == 1:
            total = span - 1
        elif isinstance(size, int):
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
        else:
            raise UnsupportedOpError(f"auto_pad {self.auto}, stride {stride}, of a dimension of symbolic size {size}")
        return (total // 2, total - total // 2) if self.auto == "SAME_UPPER" else (total - total // 2, total // 2)


def _kernel(c: Any, w: Value) -> tuple[Dim, ...]:
    return tuple(c.attr("kernel_shape", None) or w.shape[2:])


def with_bias(y: Value, bias: Value | None) -> Value:
    """``bias`` (one number per channel) added along dimension 1."""
    return y if bias is None else y + per_channel(bias, y.ndim)


@row("Conv")
def _conv(c: Any) -> Value:
    x, w = c.value(0), c.value(1)
    window = Window(c, x.shape[2:], _kernel(c, w))
    if window.kernel != w.shape[2:]:
        raise FormatError(f"kernel_shape {window.kernel} for weights {w.spec}")
    y = conv(x, w, strides=window.strides, padding=window.padding, dilation=window.dilation, groups=c.attr("group", 1))
    return with_bias(y, c.maybe(2))


@row("ConvTranspose")
def _conv_transpose(c: Any) -> Value:
    """The transpose of a convolution without pads, then cropped; in one op where the sizes allow it."""
    x, w = c.value(0), c.value(1)
    window = Window(c, x.shape[2:], _kernel(c, w))
    rank, groups = x.ndim - 2, c.attr("group", 1)
    extra = c.attr("output_padding", None) or [0] * rank
    natural = tuple(
        s * (n - 1) + extent(k, d) for n, k, s, d in zip(x.shape[2:], window.kernel, window.strides, window.dilation)
    )
    padding = window.padding
    wanted = c.attr("output_shape", None)
    if wanted is not None or window.auto.startswith("SAME"):
        wanted = wanted[-rank:] if wanted else [n * s for n, s in zip(x.shape[2:], window.strides)]
        padding = tuple(_shared(n + e - size, window.auto) for n, e, size in zip(natural, extra, wanted))
    how = {"strides": window.strides, "dilation": window.dilation, "groups": groups}
    direct = all(0 <= e < s and min(p) >= 0 for e, s, p in zip(extra, window.strides, padding))
    if direct and all(e == 0 or isinstance(n, int) for e, n in zip(extra, natural)):
        shape = tuple(n + e - low - high for n, e, (low, high) in zip(natural, extra, padding))
        y = conv_input_grad(x, w, padding=padding, input_shape=shape, **how)
    else:
        y = conv_input_grad(x, w, padding=((0, 0),) * rank, input_shape=natural, **how)
        y = pad(y, [(0, 0), (0, 0), *((-low, e - high) for e, (low, high) in zip(extra, padding))])
    return with_bias(y, c.maybe(2))


def _shared(total: Dim, auto: str) -> tuple[int, int]:
    if not isinstance(total, int):
        raise UnsupportedOpError("an output shape for a symbolic input size")
    half = total // 2
    return (half, total - half) if auto == "SAME_UPPER" else (total - half, half)


# ---- pools -----------------------------------------------------------------------------------------------------------
def _pool_window(c: Any, x: Value) -> Window:
    if x.ndim < 3:
        raise FormatError(f"input is {x.spec}; expected (N, C, *spatial)")
    window = Window(c, x.shape[2:], c.attr("kernel_shape"))
    return window


@row("MaxPool")
def _max_pool(c: Any) -> Any:
    x = c.value(0)
    window = _pool_window(c, x)
    how: dict[str, Any] = {
        "window": window.kernel, "strides": window.strides, "padding": window.padding, "dilation": window.dilation,
        "ceil_mode": bool(c.attr("ceil_mode", 0)),
    }  # fmt: skip
    y = max_pool(x, **how)
    return y if c.outputs() < 2 else (y, _positions(c, x, how))


def _positions(c: Any, x: Value, how: dict[str, Any]) -> Value:
    """Flat positions of the maxima: the pool picks from an array that holds them."""
    order = (0, 1, *range(2, x.ndim)) if not c.attr("storage_order", 0) else (0, 1, *reversed(range(2, x.ndim)))
    places = reshape(iota(product(x.shape), int64), tuple(x.shape[i] for i in order))
    places = cast(permute_dims(places, tuple(int(i) for i in np.argsort(order))), float64)
    return cast(bind(MAX_POOL_PICK, cast(x, float64), places, **how), int64)


def _average(c: Any, x: Value, include_pad: bool) -> Value:
    window = _pool_window(c, x)
    if set(window.dilation) != {1}:
        raise UnsupportedOpError(f"{c.op} with dilations {window.dilation}")
    return avg_pool(x, window=window.kernel, strides=window.strides, padding=window.padding,
                    ceil_mode=bool(c.attr("ceil_mode", 0)), include_pad=include_pad)  # fmt: skip


@row("AveragePool")
def _average_pool(c: Any) -> Value:
    return _average(c, c.value(0), bool(c.attr("count_include_pad", 0)))


@row("LpPool")
def _lp_pool(c: Any) -> Value:
    """Overhang and padding add nothing, so the sum is the padded average times the window's size."""
    x, p = c.value(0), c.attr("p", 2)
    total = _average(c, el.pow_(el.abs_(x), like(x, p)), True) * float(np.prod(c.attr("kernel_shape")))
    return el.pow_(total, like(x, 1 / p))


def _spatial(x: Value) -> tuple[int, ...]:
    if x.ndim < 3:
        raise FormatError(f"input is {x.spec}; expected (N, C, *spatial)")
    return tuple(range(2, x.ndim))


ROWS["", "GlobalAveragePool"] = lambda c: red.mean(c.value(0), axis=_spatial(c.value(0)), keepdims=True)
ROWS["", "GlobalMaxPool"] = lambda c: red.max(c.value(0), axis=_spatial(c.value(0)), keepdims=True)


@row("GlobalLpPool")
def _global_lp_pool(c: Any) -> Value:
    x, p = c.value(0), c.attr("p", 2)
    return el.pow_(red.sum(el.pow_(el.abs_(x), like(x, p)), axis=_spatial(x), keepdims=True), like(x, 1 / p))


# ---- matrix products -------------------------------------------------------------------------------------------------
ROWS["", "MatMul"] = lambda c: matmul(c.value(0), c.value(1))


@row("Gemm")
def _gemm(c: Any) -> Value:
    """alpha A' B' + beta C; integers are computed as float64."""
    a, b, bias = c.value(0), c.value(1), c.maybe(2)
    if a.ndim != 2 or b.ndim != 2:
        raise FormatError(f"operands are {a.spec} and {b.spec}; expected matrices")
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    a = permute_dims(a, (1, 0)) if c.attr("transA", 0) else a
    b = permute_dims(b, (1, 0)) if c.attr("transB", 0) else b
    y = matmul(a, b)
    y = y if alpha == 1 else y * alpha
    if bias is None or beta == 0:
        return y
    return y + (bias if beta == 1 else bias * beta)


@row("Einsum")
def _einsum(c: Any) -> Value:
    """By letters: each operand laid over all of them, multiplied, and summed over those that are not wanted."""
    left, _, out = c.attr("equation").replace(" ", "").partition("->")
    terms, xs = left.split(","), c.values()
    letters = [ch for ch in dict.fromkeys("".join(terms)) if ch in string.ascii_letters]
    if len(terms) != len(xs) or any(len(set(t)) != len(t) or len(t) != x.ndim or "." in t for t, x in zip(terms, xs)):
        raise UnsupportedOpError(f"equation {c.attr('equation')!r}: repeated letters and '...' are not supported")
    wanted = out if "->" in c.attr("equation") else "".join(sorted(ch for ch in letters if left.count(ch) == 1))
    total = None
    for term, x in zip(terms, xs):
        x = permute_dims(x, [term.index(ch) for ch in letters if ch in term])
        shape = iter(x.shape)
        x = reshape(x, tuple(next(shape) if ch in term else 1 for ch in letters))
        total = x if total is None else total * x
    assert total is not None
    dropped = tuple(i for i, ch in enumerate(letters) if ch not in wanted)
    total = red.sum(total, axis=dropped, dtype=total.dtype) if dropped else total
    kept = [ch for ch in letters if ch in wanted]
    return permute_dims(total, [kept.index(ch) for ch in wanted])
