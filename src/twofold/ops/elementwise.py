"""Elementwise ops. Operands of one dtype broadcast; the gradient engine sums cotangents back to each operand's shape.

Each row: name, meaning in NumPy, gradient. The gradient rows read ``(g, y, x)`` or ``(g, y, a, b)``; a name with an
underscore is not kept for backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.base.dtypes import DType, as_dtype, bfloat16, bool_, is_kind
from twofold.base.errors import DtypeError
from twofold.base.shapes import broadcast
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import cast, constant, together, value

ELEMENTWISE: dict[str, Op] = {}


def _check(name: str, kind: str | tuple[str, ...], dtype: DType) -> None:
    kinds = (kind,) if isinstance(kind, str) else kind
    if not is_kind(dtype, kinds):
        raise DtypeError(f"{name}: dtype {dtype.name} is not allowed; expected {' or '.join(kinds)}; cast with .astype")


def _infer(name: str, kind: Any, out: DType | None) -> Callable[..., Spec]:
    def infer(*specs: Spec, **attrs: Any) -> Spec:
        first = specs[0]
        _check(name, kind, first.dtype)
        for spec in specs[1:]:
            if spec.dtype is not first.dtype:
                raise DtypeError(
                    f"{name}: operands have dtypes {first.dtype.name} and {spec.dtype.name}; expected one dtype"
                )
        return Spec(broadcast(*(s.shape for s in specs)), out or first.dtype)

    return infer


def _computed_wide(ref: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """float16 and bfloat16 are stored narrow and computed in float32."""

    def wide(*xs: np.ndarray, **attrs: Any) -> np.ndarray:
        narrow = xs[0].dtype
        with np.errstate(all="ignore"):
            if narrow.itemsize == 2 and narrow.kind not in "iu":
                out = ref(*(x.astype(np.float32) for x in xs), **attrs)
                return out.astype(narrow) if out.dtype == np.float32 else out
            out = ref(*xs, **attrs)
        return np.asarray(out)

    return wide


def _define(
    name: str, ref: Any, vjp: Any, kind: Any, out: DType | None, samples: Any, onnx: str | None
) -> Callable[..., Any]:
    arity = len(samples()[0].inputs)
    op = Op(name, _infer(name, kind, out), _computed_wide(ref), vjp, samples, onnx, "elementwise", arity=arity)
    ELEMENTWISE[name] = register(op)

    def of_one(x: Any, /) -> Any:
        return bind(op, *together(x))

    def of_two(x1: Any, x2: Any, /) -> Any:
        return bind(op, *together(x1, x2))

    function = of_one if arity == 1 else of_two
    function.__name__ = function.__qualname__ = name
    return function


FLOAT, NUMERIC, REAL, ANY = "real floating", "numeric", "numeric", ("bool", "numeric")
INTEGER, BITS = "integral", ("bool", "integral")


def unary(
    name: str, ref: Any, vjp: Any = None, kind: Any = FLOAT, *, out: DType | None = None,
    low: float = -2.0, high: float = 2.0, grad: bool = True, onnx: str | None = None,
) -> Callable[[Any], Any]:  # fmt: skip
    """Define a unary op from its row; ``low..high`` is where samples are drawn."""
    samples = lambda: (Sample(((3, 4),), {}, grad, low, high), Sample(((),), {}, grad, low, high))
    function = _define(name, ref, vjp, kind, out, samples, onnx)
    function.__doc__ = f"Elementwise ``{name}(x)``; same shape. Array API standard semantics."
    return function


def binary(
    name: str, ref: Any, vjp: Any = None, kind: Any = NUMERIC, *, out: DType | None = None,
    low: float = -2.0, high: float = 2.0, grad: bool = True, onnx: str | None = None,
) -> Callable[[Any, Any], Any]:  # fmt: skip
    """Define a binary op from its row."""
    samples = lambda: (
        Sample(((3, 4), (3, 4)), {}, grad, low, high),
        Sample(((3, 1), (4,)), {}, grad, low, high),
        Sample(((), (2, 3)), {}, grad, low, high),
    )
    function = _define(name, ref, vjp, kind, out, samples, onnx)
    function.__doc__ = f"Elementwise ``{name}(x1, x2)`` with broadcasting. Array API standard semantics."
    return function


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype) if x.size else x


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of integers to a negative power: the quotient cut to an integer, which is 0 but for the bases 1 and -1."""
    if a.dtype.kind != "i" or not (b < 0).any():
        return np.power(a, b)
    unit = np.where(a == 1, 1, np.where(a == -1, np.where(b & 1, -1, 1), 0)).astype(a.dtype)
    return np.where(b < 0, unit, np.power(a, np.maximum(b, 0)))


def _floor_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Infinities as the standard has them: ``inf // 2`` is inf (NumPy: NaN), ``-1 // inf`` is -0 (NumPy: -1)."""
    out = np.floor_divide(a, b)
    if out.dtype.kind == "f":
        infinite = np.isinf(a) | np.isinf(b)
        if infinite.any():
            out = np.where(infinite, np.floor(a / b), out)
    return out


# fmt: off
# ---- unary, differentiable -------------------------------------------------------------------------------------------
negative   = unary("negative", np.negative, lambda g, _y, _x: (-g,), NUMERIC, onnx="Neg")
abs_       = unary("abs", np.abs, lambda g, _y, x: (g * sign(x),), NUMERIC, low=0.3, onnx="Abs")
exp        = unary("exp", np.exp, lambda g, y, _x: (safe_multiply(g, y),), onnx="Exp")
expm1      = unary("expm1", np.expm1, lambda g, y, _x: (safe_multiply(g, y + 1),))
log        = unary("log", np.log, lambda g, _y, x: (safe_divide(g, x),), low=0.5, onnx="Log")
log1p      = unary("log1p", np.log1p, lambda g, _y, x: (safe_divide(g, x + 1),), low=-0.5)
log2       = unary("log2", np.log2, lambda g, _y, x: (safe_divide(g, x * math.log(2)),), low=0.5)
log10      = unary("log10", np.log10, lambda g, _y, x: (safe_divide(g, x * math.log(10)),), low=0.5)
sqrt       = unary("sqrt", np.sqrt, lambda g, y, _x: (safe_divide(g, y * 2),), low=0.5, onnx="Sqrt")
sin        = unary("sin", np.sin, lambda g, _y, x: (g * cos(x),), onnx="Sin")
cos        = unary("cos", np.cos, lambda g, _y, x: (g * -sin(x),), onnx="Cos")
tan        = unary("tan", np.tan, lambda g, y, _x: (g * (y * y + 1),), low=-1, high=1, onnx="Tan")
asin       = unary("asin", np.arcsin, lambda g, _y, x: (safe_divide(g, sqrt(1 - x * x)),), low=-.8, high=.8, onnx="Asin")
acos       = unary("acos", np.arccos, lambda g, _y, x: (-safe_divide(g, sqrt(1 - x * x)),), low=-.8, high=.8, onnx="Acos")
atan       = unary("atan", np.arctan, lambda g, _y, x: (g / (x * x + 1),), onnx="Atan")
sinh       = unary("sinh", np.sinh, lambda g, _y, x: (g * cosh(x),), onnx="Sinh")
cosh       = unary("cosh", np.cosh, lambda g, _y, x: (g * sinh(x),), onnx="Cosh")
tanh       = unary("tanh", np.tanh, lambda g, y, _x: (g * (1 - y * y),), onnx="Tanh")
asinh      = unary("asinh", np.arcsinh, lambda g, _y, x: (g / sqrt(x * x + 1),), onnx="Asinh")
acosh      = unary("acosh", np.arccosh, lambda g, _y, x: (safe_divide(g, sqrt(x * x - 1)),), low=1.5, onnx="Acosh")
atanh      = unary("atanh", np.arctanh, lambda g, _y, x: (safe_divide(g, 1 - x * x),), low=-.8, high=.8, onnx="Atanh")
sigmoid    = unary("sigmoid", _sigmoid, lambda g, y, _x: (g * y * (1 - y),), onnx="Sigmoid")
erf        = unary("erf", _erf, lambda g, _y, x: (g * exp(-x * x) * (2 / math.sqrt(math.pi)),), onnx="Erf")
relu       = unary("relu", lambda x: np.maximum(x, 0), lambda g, y, _x: (where(y > 0, g, 0),), NUMERIC, low=.3, onnx="Relu")
square     = unary("square", np.square, lambda g, _y, x: (g * x * 2,), NUMERIC)
reciprocal = unary("reciprocal", lambda x: (1 / x).astype(x.dtype), lambda g, _y, x: (-safe_divide(safe_divide(g, x), x),),
                   low=0.5, onnx="Reciprocal")
# ---- unary, flat or not differentiable -------------------------------------------------------------------------------
sign       = unary("sign", np.sign, None, NUMERIC, onnx="Sign")
floor      = unary("floor", np.floor, None, NUMERIC, onnx="Floor")
ceil       = unary("ceil", np.ceil, None, NUMERIC, onnx="Ceil")
trunc      = unary("trunc", np.trunc, None, NUMERIC)
round_     = unary("round", np.round, None, NUMERIC, onnx="Round")
isfinite   = unary("isfinite", np.isfinite, None, NUMERIC, out=bool_)
isinf      = unary("isinf", np.isinf, None, NUMERIC, out=bool_)
isnan      = unary("isnan", np.isnan, None, NUMERIC, out=bool_)
signbit    = unary("signbit", np.signbit, None, FLOAT, out=bool_)
logical_not    = unary("logical_not", np.logical_not, None, "bool", onnx="Not")
bitwise_invert = unary("bitwise_invert", np.invert, None, BITS)
# ---- binary, differentiable ------------------------------------------------------------------------------------------
add        = binary("add", np.add, lambda g, _y, _a, _b: (g, g), onnx="Add")
subtract   = binary("subtract", np.subtract, lambda g, _y, _a, _b: (g, -g), onnx="Sub")
multiply   = binary("multiply", np.multiply, lambda g, _y, a, b: (g * b, g * a), onnx="Mul")
divide     = binary("divide", np.divide, lambda g, _y, a, b: _divide_vjp(g, a, b), FLOAT, low=0.5, onnx="Div")
pow_       = binary("pow", _power, lambda g, _y, a, b: _pow_vjp(g, a, b), low=0.5)
maximum    = binary("maximum", np.maximum, lambda g, _y, a, b: _share(g, a > b, a < b), onnx=None)
minimum    = binary("minimum", np.minimum, lambda g, _y, a, b: _share(g, a < b, a > b), onnx=None)
atan2      = binary("atan2", np.arctan2, lambda g, _y, a, b: (g * b / (a*a + b*b), -g * a / (a*a + b*b)), FLOAT, low=.5)
hypot      = binary("hypot", np.hypot, lambda g, y, a, b: (safe_divide(g * a, y), safe_divide(g * b, y)), FLOAT, low=.5)
logaddexp  = binary("logaddexp", np.logaddexp, lambda g, _y, a, b: (g * sigmoid(a - b), g * sigmoid(b - a)), FLOAT)
remainder  = binary("remainder", np.remainder, lambda g, _y, a, b: (g, -g * floor(a / b)), low=.5, grad=False)
copysign   = binary("copysign", np.copysign, lambda g, _y, a, b: (g * sign(a) * copysign(1 + b * 0, b), None), FLOAT,
                    grad=False)
# ---- binary, not differentiable --------------------------------------------------------------------------------------
floor_divide  = binary("floor_divide", _floor_divide, None, low=0.5)
nextafter     = binary("nextafter", np.nextafter, None, FLOAT)
equal         = binary("equal", np.equal, None, ANY, out=bool_, onnx="Equal")
not_equal     = binary("not_equal", np.not_equal, None, ANY, out=bool_)
less          = binary("less", np.less, None, NUMERIC, out=bool_, onnx="Less")
less_equal    = binary("less_equal", np.less_equal, None, NUMERIC, out=bool_, onnx="LessOrEqual")
greater       = binary("greater", np.greater, None, NUMERIC, out=bool_, onnx="Greater")
greater_equal = binary("greater_equal", np.greater_equal, None, NUMERIC, out=bool_, onnx="GreaterOrEqual")
logical_and   = binary("logical_and", np.logical_and, None, "bool", onnx="And")
logical_or    = binary("logical_or", np.logical_or, None, "bool", onnx="Or")
logical_xor   = binary("logical_xor", np.logical_xor, None, "bool", onnx="Xor")
bitwise_and   = binary("bitwise_and", np.bitwise_and, None, BITS)
bitwise_or    = binary("bitwise_or", np.bitwise_or, None, BITS)
bitwise_xor   = binary("bitwise_xor", np.bitwise_xor, None, BITS)
bitwise_left_shift  = binary("bitwise_left_shift", np.left_shift, None, INTEGER, low=0, high=4)
bitwise_right_shift = binary("bitwise_right_shift", np.right_shift, None, INTEGER, low=0, high=4)
# fmt: on


def positive(x: Any, /) -> Value:
    """``x`` itself; numeric dtypes."""
    x = value(x)
    _check("positive", NUMERIC, x.dtype)
    return x


def conj(x: Any, /) -> Value:
    """``x`` itself: all dtypes here are real."""
    x = value(x)
    _check("conj", NUMERIC, x.dtype)
    return x


def real(x: Any, /) -> Value:
    """``x`` itself: all dtypes here are real."""
    return conj(x)


def imag(x: Any, /) -> Value:
    """Zeros: all dtypes here are real."""
    return conj(x) * 0


def _share(g: Value, first: Value, second: Value) -> tuple[Value, Value]:
    """Gradient of max/min: to the winner, and half to each at a tie (the derivative in both directions' mean)."""
    half = g * 0.5
    return where(first, g, where(second, 0, half)), where(second, g, where(first, 0, half))


# Where a slope is infinite (sqrt at 0, log at 0, 1/x at 0, exp beyond its range), a zero cotangent stays zero. Otherwise
# the branch of a ``where`` that was not taken would give 0 * inf = NaN and poison the whole gradient.


def _pow_vjp(g: Value, a: Value, b: Value) -> tuple[Any, Any]:
    """To the base: b a^(b-1), 0 where b is 0. To the exponent: a^b log a, 0 where a is not positive."""

    def base() -> Value:
        flat = equal(b, 0)
        return safe_multiply(g, where(flat, 0, b * pow_(a, where(flat, 1, b - 1))))

    exponent = lambda: where(a > 0, g * pow_(a, b) * log(where(a > 0, a, 1)), 0)
    return base, exponent


def _divide_vjp(g: Value, a: Value, b: Value) -> tuple[Any, Any]:
    return lambda: safe_divide(g, b), lambda: -safe_divide(safe_divide(g, b) * a, b)


def _known_nonzero(b: Value) -> bool:
    """Whether ``b`` is a number that is known and is not 0 (a count, a scale): then division needs no care."""
    node = b.producer
    if node is not None:
        return node.op.name in ("constant", "full") and bool(np.all(node.attrs.get("value", node.attrs.get("fill"))))
    buffer = getattr(b, "buffer", None)
    return isinstance(buffer, np.ndarray) and buffer.size == 1 and bool(buffer.reshape(()))


def safe_divide(a: Value, b: Value) -> Value:
    """``a / b``, with 0 / 0 = 0."""
    if _known_nonzero(b):
        return a / b
    return a / where(logical_and(equal(a, 0), equal(b, 0)), 1, b)


def safe_multiply(a: Value, b: Value) -> Value:
    """``a * b``, with 0 * inf = 0."""
    return a * where(logical_and(equal(a, 0), isinf(b)), 0, b)


# ---- where, cast, detach, dim_size, barrier --------------------------------------------------------------------------


def _where_infer(condition: Spec, a: Spec, b: Spec) -> Spec:
    if condition.dtype is not bool_:
        raise DtypeError(f"where: condition has dtype {condition.dtype.name}; expected bool; compare first, e.g. x > 0")
    if a.dtype is not b.dtype:
        raise DtypeError(f"where: branches have dtypes {a.dtype.name} and {b.dtype.name}; expected one dtype")
    return Spec(broadcast(condition.shape, a.shape, b.shape), a.dtype)


WHERE = register(
    Op(
        "where", _where_infer, np.where,
        lambda g, _y, c, _a, _b: (None, where(c, g, 0), where(c, 0, g)),
        lambda: (Sample((np.array([[True, False, True], [False, True, True]]), (2, 3), (3,))),
                 Sample((np.array(True), (2, 3), ()))),
        "Where", "elementwise",
    )
)  # fmt: skip
ELEMENTWISE["where"] = WHERE


def where(condition: Any, x1: Any, x2: Any, /) -> Value:
    """``x1`` where ``condition`` (bool), else ``x2``; all three broadcast. The branch not taken gets gradient 0, not NaN."""
    a, b = together(x1, x2)
    return bind(WHERE, value(condition, (a, b)), a, b)


def _cast_ref(x: np.ndarray, *, dtype: DType) -> np.ndarray:
    with np.errstate(all="ignore"):
        x = np.asarray(x)
        return (_to_odd(x) if x.dtype == np.float64 and dtype is bfloat16 else x).astype(dtype.numpy)


def _to_odd(x: np.ndarray) -> np.ndarray:
    """float64 as float32 towards zero, with the last bit set if anything was lost: rounded to bfloat16 after that it is
    rounded once (``ml_dtypes`` goes through the nearest float32 and so rounds twice)."""
    near = x.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32) - (np.abs(back) > np.abs(x)).astype(np.uint32)
    return np.where((back == x) | np.isnan(x), near, (bits | np.uint32(1)).view(np.float32))


CAST = register(
    Op(
        "cast", lambda x, *, dtype: Spec(x.shape, dtype), _cast_ref,
        lambda g, _y, x, *, dtype: (cast(g, x.dtype) if x.dtype.is_floating else None,),
        lambda: (Sample(((2, 3),), {"dtype": as_dtype("float64")}), Sample(((2, 3),), {"dtype": as_dtype("int32")}, False)),
        None, "elementwise",
    )
)  # fmt: skip
ELEMENTWISE["cast"] = CAST
DETACH = register(
    Op("detach", lambda x: x, lambda x: x, None, lambda: (Sample(((2, 3),), {}, False),), "Identity",
       doc="Identity that lets no gradient pass.")
)  # fmt: skip
IDENTITY = register(
    Op("identity", lambda x: x, lambda x: x, lambda g, _y, _x: (g,), lambda: (Sample(((2, 3),)),), "Identity")
)
BARRIER = register(
    Op("barrier", lambda *xs: xs, lambda *xs: xs, lambda gs, _y, *_xs: gs, lambda: (Sample(((2,), (3,))),), multi=True,
       pure=False, doc="Identity on several values that no pass merges: what is computed after it is computed again.")
)  # fmt: skip


def detach(x: Any) -> Value:
    """``x`` as a constant for gradients."""
    return bind(DETACH, value(x))


def identity(x: Any) -> Value:
    """A new value equal to ``x``, through which gradients pass."""
    return bind(IDENTITY, value(x))


def barrier(*xs: Value) -> tuple[Value, ...]:
    """Equal values that are not merged with the originals by any pass."""
    return bind(BARRIER, *xs)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Value:
    """``x`` limited to [min, max]; either may be None, a scalar, or an array that broadcasts. Gradient 0 outside."""
    x = value(x)
    if min is not None:
        low = together(x, min)[1]
        x = where(x < low, low, x)
    if max is not None:
        high = together(x, max)[1]
        x = where(x > high, high, x)
    return x


__all__ = [n for n in ELEMENTWISE if n not in ("abs", "pow", "round")] + ["constant"]
