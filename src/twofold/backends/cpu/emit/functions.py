"""Elementwise ops as instructions: one row an op, ``(f, dtype of the operands, *values) -> value``.

Rows follow NumPy's meaning (the op table's ``ref``), also where the machine would trap: integer division by zero gives 0,
shifts beyond the width give 0 or the sign. float32 ``exp log tanh sigmoid erf`` are polynomials (``polynomials.py``); the
rest calls the C library lane by lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twofold.backends.cpu.emit import polynomials
from twofold.backends.cpu.llvm import Function, Value, const, vector
from twofold.base.dtypes import DType

Row = Callable[..., Value]


def libm(f: Function, name: str, *xs: Value) -> Value:
    """The C library's function, lane by lane."""
    single = xs[0].element == "float"
    symbol = f"{name}f" if single else name
    if not xs[0].lanes:
        return f.call(symbol, xs[0].type, list(xs))
    out = Value(xs[0].type, "poison")
    for lane in range(xs[0].lanes):
        out = f.insert(out, f.call(symbol, xs[0].element, [f.extract(x, lane) for x in xs]), lane)
    return out


def _libm(name: str) -> Row:
    return lambda f, _d, *xs: libm(f, name, *xs)


def _intrinsic(name: str) -> Row:
    return lambda f, _d, *xs: f.intrinsic(name, *xs)


def _fast(name: str, polynomial: Row) -> Row:
    """A polynomial for float32, the C library for float64."""
    return lambda f, d, x: polynomial(f, x) if x.element == "float" else libm(f, name, x)


def _by_kind(floating: str, signed: str, unsigned: str | None = None) -> Row:
    """One instruction for each kind of operand."""

    def row(f: Function, d: DType, a: Value, b: Value) -> Value:
        return f.binary(floating if d.is_floating else signed if d.kind == "i" else unsigned or signed, a, b)

    return row


def _compare(floating: str, signed: str, unsigned: str) -> Row:
    def row(f: Function, d: DType, a: Value, b: Value) -> Value:
        if d.is_floating:
            return f.fcmp(floating, a, b)
        return f.icmp(signed if d.kind == "i" else unsigned, a, b)

    return row


def _extreme(predicate: str) -> Row:
    def row(f: Function, d: DType, a: Value, b: Value) -> Value:
        if not d.is_floating:
            prefix = "s" if d.kind == "i" else "u"
            return f.select(f.icmp(f"{prefix}{predicate}", a, b), a, b)
        keep = f.select(f.fcmp(f"o{predicate}", a, b), a, b)
        return f.select(f.fcmp("uno", a, a), a, keep)  # b NaN: the comparison is false and b is taken

    return row


def _negative(f: Function, d: DType, x: Value) -> Value:
    return f.value(x.type, f"fneg {x}") if d.is_floating else f.binary("sub", 0, x)


def _absolute(f: Function, d: DType, x: Value) -> Value:
    if d.is_floating:
        return f.intrinsic("fabs", x)
    return x if d.kind == "u" else f.select(f.icmp("slt", x, 0), f.binary("sub", 0, x), x)


def _sign(f: Function, d: DType, x: Value) -> Value:
    one, zero = const(x.type, 1), const(x.type, 0)
    if d.is_floating:
        out = f.select(f.fcmp("ogt", x, 0.0), one, f.select(f.fcmp("olt", x, 0.0), const(x.type, -1.0), zero))
        return f.select(f.fcmp("uno", x, x), x, out)
    if d.kind == "u":
        return f.select(f.icmp("ne", x, 0), one, zero)
    return f.select(f.icmp("sgt", x, 0), one, f.select(f.icmp("slt", x, 0), const(x.type, -1), zero))


def _whole(name: str) -> Row:
    """Rounding: nothing to do for integers."""
    return lambda f, d, x: f.intrinsic(name, x) if d.is_floating else x


def _relu(f: Function, d: DType, x: Value) -> Value:
    if d.is_floating:
        return f.relu(x)
    return x if d.kind == "u" else f.select(f.icmp("slt", x, 0), const(x.type, 0), x)


def _square(f: Function, d: DType, x: Value) -> Value:
    return f.binary("fmul" if d.is_floating else "mul", x, x)


def _false(x: Value) -> Value:
    return const(vector("i1", x.lanes), False)


def _isfinite(f: Function, d: DType, x: Value) -> Value:
    if not d.is_floating:
        return const(vector("i1", x.lanes), True)
    return f.fcmp("olt", f.intrinsic("fabs", x), float("inf"))


def _signbit(f: Function, d: DType, x: Value) -> Value:
    return f.icmp("slt", f.cast("bitcast", x, "i64" if x.element == "double" else "i32"), 0)


def _integer_parts(f: Function, d: DType, a: Value, b: Value) -> tuple[Value, Value]:
    """Truncated quotient and remainder with a divisor that never traps; callers fix the special divisors."""
    one = const(b.type, 1)
    odd = f.icmp("eq", b, 0)
    if d.kind == "i":
        odd = f.binary("or", odd, f.icmp("eq", b, -1))
    safe = f.select(odd, one, b)
    prefix = "s" if d.kind == "i" else "u"
    return f.binary(f"{prefix}div", a, safe), f.binary(f"{prefix}rem", a, safe)


def _floor_divide(f: Function, d: DType, a: Value, b: Value) -> Value:
    if d.is_floating:
        return _float_floor_divide(f, a, b)
    zero = const(a.type, 0)
    quotient, rest = _integer_parts(f, d, a, b)
    if d.kind == "i":
        below = f.binary("and", f.icmp("ne", rest, 0), f.icmp("slt", f.binary("xor", rest, b), 0))
        quotient = f.select(below, f.binary("sub", quotient, 1), quotient)
        quotient = f.select(f.icmp("eq", b, -1), f.binary("sub", 0, a), quotient)
    return f.select(f.icmp("eq", b, 0), zero, quotient)


def _differ_in_sign(f: Function, a: Value, b: Value) -> Value:
    return f.binary("xor", f.fcmp("olt", a, 0.0), f.fcmp("olt", b, 0.0))


def _float_floor_divide(f: Function, a: Value, b: Value) -> Value:
    """NumPy's: exact where floor(a / b) would round up. Of infinities it is that quotient, as in the op's record."""
    rest = f.binary("frem", a, b)
    quotient = f.fdiv(f.fsub(a, rest), b)
    below = f.binary("and", f.fcmp("une", rest, 0.0), _differ_in_sign(f, rest, b))
    quotient = f.select(below, f.fsub(quotient, 1.0), quotient)
    floor = f.intrinsic("floor", quotient)
    floor = f.select(f.fcmp("ogt", f.fsub(quotient, floor), 0.5), f.fadd(floor, 1.0), floor)
    plain = f.fdiv(a, b)
    floor = f.select(f.fcmp("une", quotient, 0.0), floor, f.intrinsic("copysign", const(a.type, 0.0), plain))
    infinite = lambda x: f.fcmp("oeq", f.intrinsic("fabs", x), float("inf"))
    floor = f.select(f.binary("or", infinite(a), infinite(b)), f.intrinsic("floor", plain), floor)
    return f.select(f.fcmp("oeq", b, 0.0), plain, floor)


def _remainder(f: Function, d: DType, a: Value, b: Value) -> Value:
    if d.is_floating:
        rest = f.binary("frem", a, b)
        moved = f.select(_differ_in_sign(f, rest, b), f.fadd(rest, b), rest)
        return f.select(f.fcmp("une", rest, 0.0), moved, f.intrinsic("copysign", rest, b))
    _, rest = _integer_parts(f, d, a, b)
    if d.kind == "i":
        below = f.binary("and", f.icmp("ne", rest, 0), f.icmp("slt", f.binary("xor", rest, b), 0))
        rest = f.select(below, f.binary("add", rest, b), rest)
    return f.select(f.icmp("eq", b, 0), const(a.type, 0), rest)


def _power(f: Function, d: DType, a: Value, b: Value) -> Value:
    if d.is_floating:
        return libm(f, "pow", a, b)
    result, base, bits = const(a.type, 1), a, b
    for _ in range(d.bits if d.bits < 64 else 63):  # squaring; exponents beyond wrap as the products do
        take = f.icmp("ne", f.binary("and", bits, 1), 0)
        result = f.select(take, f.binary("mul", result, base), result)
        base, bits = f.binary("mul", base, base), f.binary("lshr", bits, 1)
    if d.kind == "u":
        return result
    sign = f.select(f.icmp("ne", f.binary("and", b, 1), 0), a, const(a.type, 1))  # of a base of -1
    unit = f.select(f.icmp("eq", a, 1), a, f.select(f.icmp("eq", a, -1), sign, const(a.type, 0)))
    return f.select(f.icmp("slt", b, 0), unit, result)  # the quotient cut to an integer


def _logaddexp(f: Function, d: DType, a: Value, b: Value) -> Value:
    gap = f.fsub(a, b)
    high = _extreme("gt")(f, d, a, b)
    near = f.value(gap.type, f"fneg {f.intrinsic('fabs', gap)}")
    out = f.fadd(high, libm(f, "log1p", ROWS["exp"](f, d, near)))
    return f.select(f.fcmp("oeq", a, b), f.fadd(a, 0.6931471805599453), out)


def _shift(left: bool) -> Row:
    def row(f: Function, d: DType, a: Value, b: Value) -> Value:
        big = f.icmp("uge", b, d.bits)
        amount = f.select(big, const(b.type, 0), b)
        if left:
            return f.select(big, const(a.type, 0), f.binary("shl", a, amount))
        if d.kind == "u":
            return f.select(big, const(a.type, 0), f.binary("lshr", a, amount))
        return f.select(big, f.binary("ashr", a, d.bits - 1), f.binary("ashr", a, amount))

    return row


def _not(f: Function, d: DType, x: Value) -> Value:
    return f.binary("xor", x, const(x.type, True if x.element == "i1" else -1))


def _sigmoid(f: Function, d: DType, x: Value) -> Value:
    if x.element == "float":
        return polynomials.sigmoid(f, x)
    e = libm(f, "exp", f.value(x.type, f"fneg {f.intrinsic('fabs', x)}"))
    low = f.fdiv(e, f.fadd(e, 1.0))
    return f.select(f.fcmp("oge", x, 0.0), f.fdiv(1.0, f.fadd(e, 1.0)), low)


def _select(f: Function, _d: DType, c: Value, a: Value, b: Value) -> Value:
    return f.select(c, a, b)


# fmt: off
ROWS: dict[str, Any] = {
    "negative": _negative, "abs": _absolute, "sign": _sign, "relu": _relu, "square": _square,
    "exp": _fast("exp", polynomials.exp), "log": _fast("log", polynomials.log), "tanh": _fast("tanh", polynomials.tanh),
    "erf": _fast("erf", polynomials.erf), "sigmoid": _sigmoid, "sqrt": _intrinsic("sqrt"),
    "reciprocal": lambda f, d, x: f.fdiv(1.0, x),
    "floor": _whole("floor"), "ceil": _whole("ceil"), "trunc": _whole("trunc"), "round": _whole("rint"),
    "isfinite": _isfinite, "signbit": _signbit,
    "isinf": lambda f, d, x: f.fcmp("oeq", f.intrinsic("fabs", x), float("inf")) if d.is_floating else _false(x),
    "isnan": lambda f, d, x: f.fcmp("uno", x, x) if d.is_floating else _false(x),
    "logical_not": _not, "bitwise_invert": _not,
    "add": _by_kind("fadd", "add"), "subtract": _by_kind("fsub", "sub"), "multiply": _by_kind("fmul", "mul"),
    "divide": _by_kind("fdiv", "sdiv"),
    "maximum": _extreme("gt"), "minimum": _extreme("lt"), "pow": _power,
    "copysign": _intrinsic("copysign"), "logaddexp": _logaddexp, "remainder": _remainder, "floor_divide": _floor_divide,
    "equal": _compare("oeq", "eq", "eq"), "not_equal": _compare("une", "ne", "ne"),
    "less": _compare("olt", "slt", "ult"), "less_equal": _compare("ole", "sle", "ule"),
    "greater": _compare("ogt", "sgt", "ugt"), "greater_equal": _compare("oge", "sge", "uge"),
    "logical_and": lambda f, d, a, b: f.binary("and", a, b), "logical_or": lambda f, d, a, b: f.binary("or", a, b),
    "logical_xor": lambda f, d, a, b: f.binary("xor", a, b), "bitwise_and": lambda f, d, a, b: f.binary("and", a, b),
    "bitwise_or": lambda f, d, a, b: f.binary("or", a, b), "bitwise_xor": lambda f, d, a, b: f.binary("xor", a, b),
    "bitwise_left_shift": _shift(True), "bitwise_right_shift": _shift(False), "where": _select,
}
ROWS |= {name: _libm(name) for name in (
    "expm1", "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh",
    "atanh", "atan2", "hypot", "nextafter",
)}
# fmt: on
