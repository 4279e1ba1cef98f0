"""Composites and the standard operators that stand for them: pattern rows.

Each rule: the pattern of the composite's expression, a check, and how the operator is written. The first rule that
matches a node wins; rules that cover more stand first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twofold.base.shapes import product
from twofold.io.onnx.export import layers
from twofold.io.onnx.export.emitter import Emitter
from twofold.io.onnx.export.patterns import Match, P, Pattern, const, either, same, var
from twofold.ir import Node, Value


@dataclass(frozen=True)
class Rule:
    """A composite: found by ``pattern`` and ``check``, written by ``write(emitter, *input names, match)``."""

    name: str
    pattern: Pattern
    inputs: tuple[str, ...]
    write: Callable[..., str]
    check: Callable[[Match], bool] = lambda m: True


@dataclass(frozen=True)
class Raised:
    """A rule that matched, and the values it reads."""

    rule: Rule
    match: Match

    @property
    def inputs(self) -> list[Value]:
        return [self.match[name] for name in self.rule.inputs]


def find(node: Node) -> Raised | None:
    """The first rule whose pattern ends in ``node``."""
    if node.op.multi:
        return None
    for rule in _BY_OP.get(node.op.name, ()):
        for match in rule.pattern.match(node.output, {"y": node.output}):
            if rule.check(match):
                return Raised(rule, match)
    return None


# ---- softmax and its logarithm ---------------------------------------------------------------------------------------
_X = var("x")
_PEAK = P.max(_X, save="max", keepdims=True)
_FINITE_PEAK = either((_PEAK, P.where(P.isfinite(_PEAK), _PEAK, const(number=0))))
_SHIFTED = P.subtract(_X, _FINITE_PEAK, save="shifted")
_SOFTMAX = P.divide(P.exp(_SHIFTED, save="e"), P.sum(same("e"), save="sum", keepdims=True))
_LOG_SOFTMAX = P.subtract(_SHIFTED, P.log(P.sum(P.exp(same("shifted")), save="sum", keepdims=True)))
_LSE = P.add(P.log(P.sum(P.exp(_SHIFTED), save="sum", keepdims=True)), _FINITE_PEAK)
_LOG_SOFTMAX_BY_LSE = P.subtract(var("x"), _LSE)


def _one_axis(m: Match) -> bool:
    axes = m["sum.node"].attrs["axes"]
    return len(axes) == 1 and m["max.node"].attrs["axes"] == axes


def _axis(m: Match) -> int:
    """Counted from the end, as Softmax reads best."""
    return m["sum.node"].attrs["axes"][0] - m["x"].ndim


def _reduce_axes(e: Emitter, m: Match) -> str:
    return e.ints(*m["sum.node"].attrs["axes"])


# ---- means -----------------------------------------------------------------------------------------------------------
def _is_mean(m: Match) -> bool:
    axes = m["sum.node"].attrs["axes"]
    return product(m["x"].shape[a] for a in axes) == m["count"]


def _is_global_pool(m: Match) -> bool:
    node, x = m["sum.node"], m["x"]
    return _is_mean(m) and x.ndim > 2 and node.attrs["axes"] == tuple(range(2, x.ndim)) and node.attrs["keepdims"]


def _write_mean(e: Emitter, x: str, m: Match) -> str:
    return e.op("ReduceMean", x, _reduce_axes(e, m), keepdims=int(m["sum.node"].attrs["keepdims"]))


_MEAN = P.divide(P.sum(_X, save="sum"), const("count"))


# ---- layers ----------------------------------------------------------------------------------------------------------
def _is_laid(v: Value, y: Value) -> bool:
    """Whether ``v`` is one number per channel, laid along dimension 1 of ``y``."""
    laid = (y.shape[1], *(1,) * (y.ndim - 2))
    return y.ndim > 1 and v.shape in (laid, (1, *laid))


def _bias_fits(m: Match) -> bool:
    return m["b"].ndim == 1 and _is_laid(m["b_laid"], m["y"])


def _laid(name: str) -> Pattern:
    return P.reshape(var(name), save=f"{name}_laid")


def _with_bias(row: Callable[..., Any]) -> Callable[..., str]:
    return lambda e, x, w, b, m: row(e, m["conv.node"], x, w, b)


def _transposes(m: Match) -> bool:
    return _bias_fits(m) and layers.output_padding(m["conv.node"]) is not None


_CONV_BIAS = P.add(P.conv(_X, var("w"), save="conv"), _laid("b"))
_CONV_TRANSPOSE_BIAS = P.add(P.conv_input_grad(_X, var("w"), save="conv"), _laid("b"))
_LINEAR = P.add(P.matmul(_X, P.permute_dims(var("w"), axes=(1, 0))), var("b"))
_GEMM = P.add(P.matmul(_X, var("w")), var("b"))
_LINEAR_NO_BIAS = P.matmul(_X, P.permute_dims(var("w"), axes=(1, 0)))


def _is_gemm(m: Match) -> bool:
    return m["x"].ndim == 2 and m["w"].ndim == 2 and m["b"].ndim <= 2 and m["y"].ndim == 2


_INVERSE_STD = P.divide(const(number=1), P.sqrt(P.add(var("var"), const("eps"))))
_SCALE = P.multiply(_INVERSE_STD, var("scale"))
_BATCH_NORM = P.add(
    P.multiply(_X, P.reshape(_SCALE, save="scale_laid")),
    P.reshape(P.add(P.multiply(P.negative(var("mean")), _SCALE), var("bias")), save="bias_laid"),
)


def _is_batch_norm(m: Match) -> bool:
    vectors = [m[n] for n in ("scale", "bias", "mean", "var")]
    return all(v.shape == (m["x"].shape[1],) for v in vectors) and all(
        _is_laid(m[n], m["y"]) for n in ("scale_laid", "bias_laid")
    )


def _write_batch_norm(e: Emitter, x: str, scale: str, bias: str, mean: str, var_: str, m: Match) -> str:
    return e.op("BatchNormalization", x, scale, bias, mean, var_, epsilon=float(m["eps"]))


# ---- activations -----------------------------------------------------------------------------------------------------
_ERF = P.erf(P.multiply(_X, const(number=math.sqrt(0.5))))
_CUBE = P.multiply(P.multiply(P.multiply(_X, _X), _X), const(number=0.044715))
_TANH = P.tanh(P.multiply(P.add(_X, _CUBE), const(number=math.sqrt(2 / math.pi))))
_HALF_X = P.multiply(_X, const(number=0.5))
_GELU = P.multiply(_HALF_X, P.add(_ERF, const(number=1)))
_GELU_TANH = P.multiply(_HALF_X, P.add(_TANH, const(number=1)))
_POSITIVE = P.greater(_X, const(number=0))
_LEAKY_RELU = P.where(_POSITIVE, _X, P.multiply(_X, const("slope")))
_PRELU = P.where(_POSITIVE, _X, P.multiply(_X, var("slope")))
_ELU = P.where(_POSITIVE, _X, P.multiply(P.expm1(P.where(_POSITIVE, const(number=0), _X)), const("alpha")))
_TIMES_ONE = P.multiply(_X, const(number=1))
_SOFTPLUS = P.multiply(P.logaddexp(_TIMES_ONE, P.multiply(_TIMES_ONE, const(number=0))), const(number=1))
_LOWER = P.where(P.less(_X, const("low")), const("low"), _X, save="inner")
_CLIP = P.where(P.greater(_LOWER, const("high")), const("high"), same("inner"))


def _slope_fits(m: Match) -> bool:
    return m["slope"].ndim <= m["x"].ndim


def _write_clip(e: Emitter, x: str, m: Match) -> str:
    return e.op("Clip", x, *[e.constant(m[n], m["y"].dtype.numpy) for n in ("low", "high")])


# ---- local response normalisation: a sum of slices, as many as the window has channels -------------------------------
_LRN = P.divide(_X, P.pow(P.add(P.multiply(var("total"), const("scale")), const("k")), const("beta")))


def _lrn_window(m: Match) -> int | None:
    """The odd size of the window whose squares ``total`` adds up, or None if it is something else."""
    slices, value = [], m["total"]
    while value.producer is not None and value.producer.op.name == "add":
        value, last = value.producer.inputs
        slices.append(last)
    slices = [value, *reversed(slices)]
    size, x = len(slices), m["x"]
    if x.ndim < 3 or size % 2 == 0 or not all(s.producer is not None and s.producer.op.name == "slice" for s in slices):
        return None
    padded = slices[0].producer.inputs[0]
    whole = P.pad(P.multiply(_X, _X), save="pad")
    around = tuple((size // 2, size // 2) if i == 1 else (0, 0) for i in range(x.ndim))
    for found in whole.match(padded, {"x": x}):
        starts = tuple(tuple(i if axis == 1 else 0 for axis in range(x.ndim)) for i in range(size))
        attrs = found["pad.node"].attrs
        sound = attrs["widths"] == around and attrs["fill"] == 0 and not any(attrs["interior"])
        if sound and all(s.producer.inputs[0] is padded and s.producer.attrs["starts"] == at and s.shape == x.shape
                         for s, at in zip(slices, starts)):  # fmt: skip
            return size
    return None


def _write_lrn(e: Emitter, x: str, m: Match) -> str:
    size = _lrn_window(m)
    assert size is not None
    return e.op("LRN", x, size=size, alpha=float(m["scale"] * size), beta=float(m["beta"]), bias=float(m["k"]))


# ---- layer normalisation ---------------------------------------------------------------------------------------------
_LAYER_MEAN = P.divide(P.sum(_X, save="sum", keepdims=True), const("count"))
_LAYER_CENTRED = P.subtract(_X, _LAYER_MEAN, save="centred")
_LAYER_VAR = P.divide(
    P.sum(P.multiply(same("centred"), same("centred")), save="squares", keepdims=True), const("count")
)
_LAYER_NORMED = P.divide(_LAYER_CENTRED, P.sqrt(P.add(_LAYER_VAR, const("eps"))))
_LAYER_NORM = P.add(P.multiply(_LAYER_NORMED, var("w")), var("b"))


def _is_layer_norm(m: Match) -> bool:
    axes, x = m["sum.node"].attrs["axes"], m["x"]
    tail = x.shape[axes[0] :]
    last = axes == tuple(range(axes[0], x.ndim)) and m["squares.node"].attrs["axes"] == axes
    return last and _is_mean(m) and m["w"].shape == tail and m["b"].shape == tail


def _write_layer_norm(e: Emitter, x: str, w: str, b: str, m: Match) -> str:
    axis = m["sum.node"].attrs["axes"][0] - m["x"].ndim
    return e.op("LayerNormalization", x, w, b, axis=axis, epsilon=float(m["eps"]))


RULES = (
    Rule("softmax", _SOFTMAX, ("x",), lambda e, x, m: e.op("Softmax", x, axis=_axis(m)), _one_axis),
    Rule("log_softmax", _LOG_SOFTMAX, ("x",), lambda e, x, m: e.op("LogSoftmax", x, axis=_axis(m)), _one_axis),
    Rule("log_softmax", _LOG_SOFTMAX_BY_LSE, ("x",), lambda e, x, m: e.op("LogSoftmax", x, axis=_axis(m)), _one_axis),
    Rule("batch_norm", _BATCH_NORM, ("x", "scale", "bias", "mean", "var"), _write_batch_norm,
         _is_batch_norm),
    Rule("conv_bias", _CONV_BIAS, ("x", "w", "b"), _with_bias(layers.conv), _bias_fits),
    Rule("conv_transpose_bias", _CONV_TRANSPOSE_BIAS, ("x", "w", "b"), _with_bias(layers.conv_transpose), _transposes),
    Rule("linear", _LINEAR, ("x", "w", "b"), lambda e, x, w, b, m: e.op("Gemm", x, w, b, transB=1), _is_gemm),
    Rule("gemm", _GEMM, ("x", "w", "b"), lambda e, x, w, b, m: e.op("Gemm", x, w, b), _is_gemm),
    Rule("linear_no_bias", _LINEAR_NO_BIAS, ("x", "w"), lambda e, x, w, m: e.op("Gemm", x, w, transB=1),
         lambda m: m["x"].ndim == 2 and m["w"].ndim == 2),
    Rule("global_average_pool", _MEAN, ("x",), lambda e, x, m: e.op("GlobalAveragePool", x), _is_global_pool),
    Rule("mean", _MEAN, ("x",), _write_mean, _is_mean),
    Rule("gelu", _GELU, ("x",), lambda e, x, m: e.op("Gelu", x)),
    Rule("gelu_tanh", _GELU_TANH, ("x",), lambda e, x, m: e.op("Gelu", x, approximate="tanh")),
    Rule("elu", _ELU, ("x",), lambda e, x, m: e.op("Elu", x, alpha=float(m["alpha"]))),
    Rule("leaky_relu", _LEAKY_RELU, ("x",), lambda e, x, m: e.op("LeakyRelu", x, alpha=float(m["slope"]))),
    Rule("prelu", _PRELU, ("x", "slope"), lambda e, x, s, m: e.op("PRelu", x, s), _slope_fits),
    Rule("softplus", _SOFTPLUS, ("x",), lambda e, x, m: e.op("Softplus", x)),
    Rule("clip", _CLIP, ("x",), _write_clip),
    Rule("lrn", _LRN, ("x",), _write_lrn, lambda m: _lrn_window(m) is not None),
    Rule("layer_norm", _LAYER_NORM, ("x", "w", "b"), _write_layer_norm, _is_layer_norm),
)  # fmt: skip

_BY_OP: dict[str, Sequence[Rule]] = {}


def _roots(pattern: Any) -> list[str]:
    return [r for o in pattern.options for r in _roots(o)] if isinstance(pattern, either) else [pattern.op]


for _rule in RULES:
    for _root in dict.fromkeys(_roots(_rule.pattern)):
        _BY_OP[_root] = (*_BY_OP.get(_root, ()), _rule)
