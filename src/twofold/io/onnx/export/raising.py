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
from twofold.io.onnx.export.patterns import Match, P, Pattern, const, either, optional, same, var
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


def _transposable(m: Match) -> bool:
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
    return all(v.shape == (m["x"].shape[1],) for v in vectors) and all(_is_laid(m[n], m["y"]) for n in ("scale_laid", "bias_laid"))


def _write_batch_norm(e: Emitter, x: str, scale: str, bias: str, mean: str, var_: str, m: Match) -> str:
    return e.op("BatchNormalization", x, scale, bias, mean, var_, epsilon=float(m["eps"]))


# ---- activations -----------------------------------------------------------------------------------------------------
_HALF_ROOT = const(number=1 / math.sqrt(2))
_ERF = either((P.erf(P.multiply(_X, _HALF_ROOT)), P.erf(P.divide(_X, const(number=math.sqrt(2))))))
_ONE_PLUS_ERF = P.add(_ERF, const(number=1))
_HALF = const(number=0.5)
_GELU = either(
    (
        P.multiply(P.multiply(_X, _HALF), _ONE_PLUS_ERF),
        P.multiply(_X, P.multiply(_ONE_PLUS_ERF, _HALF)),
        P.multiply(P.multiply(_X, _ONE_PLUS_ERF), _HALF),
    )
)
_LOWER = P.where(P.less(_X, const("low")), const("low"), _X)
_CLIP = P.where(P.greater(optional("identity", _LOWER, "inner"), const("high")), const("high"), same("inner"))


def _clip_limits(e: Emitter, m: Match, *names: str) -> list[str]:
    return [e.constant(m[n], m["y"].dtype.numpy) for n in names]


RULES = (
    Rule("softmax", _SOFTMAX, ("x",), lambda e, x, m: e.op("Softmax", x, axis=_axis(m)), _one_axis),
    Rule("log_softmax", _LOG_SOFTMAX, ("x",), lambda e, x, m: e.op("LogSoftmax", x, axis=_axis(m)), _one_axis),
    Rule("log_softmax", _LOG_SOFTMAX_BY_LSE, ("x",), lambda e, x, m: e.op("LogSoftmax", x, axis=_axis(m)), _one_axis),
    Rule("batch_norm", _BATCH_NORM, ("x", "scale", "bias", "mean", "var"), _write_batch_norm,
         _is_batch_norm),
    Rule("conv_bias", _CONV_BIAS, ("x", "w", "b"), _with_bias(layers.conv), _bias_fits),
    Rule("conv_transpose_bias", _CONV_TRANSPOSE_BIAS, ("x", "w", "b"), _with_bias(layers.conv_transpose), _transposable),
    Rule("linear", _LINEAR, ("x", "w", "b"), lambda e, x, w, b, m: e.op("Gemm", x, w, b, transB=1), _is_gemm),
    Rule("gemm", _GEMM, ("x", "w", "b"), lambda e, x, w, b, m: e.op("Gemm", x, w, b), _is_gemm),
    Rule("linear_no_bias", _LINEAR_NO_BIAS, ("x", "w"), lambda e, x, w, m: e.op("Gemm", x, w, transB=1),
         lambda m: m["x"].ndim == 2 and m["w"].ndim == 2),
    Rule("global_average_pool", _MEAN, ("x",), lambda e, x, m: e.op("GlobalAveragePool", x), _is_global_pool),
    Rule("mean", _MEAN, ("x",), _write_mean, _is_mean),
    Rule("gelu", _GELU, ("x",), lambda e, x, m: e.op("Gelu", x)),
)  # fmt: skip

_BY_OP: dict[str, Sequence[Rule]] = {}


def _roots(pattern: Any) -> list[str]:
    return [r for o in pattern.options for r in _roots(o)] if isinstance(pattern, either) else [pattern.op]


for _rule in RULES:
    for _root in dict.fromkeys(_roots(_rule.pattern)):
        _BY_OP[_root] = (*_BY_OP.get(_root, ()), _rule)
