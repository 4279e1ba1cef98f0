"""Vectorisable float32 approximations. Errors are the largest found over all floats of the range, in units in the last place.

    exp 2.9    log 0.8    sigmoid 3.6    tanh 1.5    erf 2.5

Methods: exp by n = round(x / ln 2) and a degree-6 minimax of the rest; log by x = 2**e * m, m in [0.7, 1.4), a degree-9
polynomial in m - 1 (Moshier's Cephes constants); tanh by exp of 2|x| away from 0 and a polynomial of low degree near it;
erf by a polynomial below 1 and, beyond, the Chebyshev fit of erfc in "Numerical Recipes" (section 6.2).
"""

from __future__ import annotations

from twofold.backends.cpu.llvm import Function, Value, const


def _horner(f: Function, x: Value, coefficients: list[float]) -> Value:
    """The polynomial with the highest coefficient first."""
    total = const(x.type, coefficients[0])
    for c in coefficients[1:]:
        total = f.fma(total, x, const(x.type, c))
    return total


def exp(f: Function, x: Value) -> Value:
    """e**x; 0 below -104, infinity above 88.73; NaN stays."""
    clamped = f.select(f.fcmp("ogt", x, 89.0), const(x.type, 89.0), x)
    clamped = f.select(f.fcmp("olt", clamped, -104.0), const(x.type, -104.0), clamped)
    n = f.intrinsic("rint", f.fmul(clamped, 1.4426950408889634))
    r = f.fma(n, -0.693359375, clamped)  # ln 2 in two parts: the first product is exact
    r = f.fma(n, 2.12194440e-4, r)
    p = _horner(f, r, [1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1])
    p = f.fadd(f.fma(f.fmul(r, r), p, r), 1.0)
    safe = f.select(f.fcmp("uno", x, x), const(x.type, 0.0), n)
    whole = f.cast("fptosi", safe, "i32")
    half = f.binary("ashr", whole, 1)  # in two steps: 2**n alone may leave the range of normal numbers
    out = f.fmul(f.fmul(p, _power_of_two(f, half)), _power_of_two(f, f.binary("sub", whole, half)))
    return out


def _power_of_two(f: Function, n: Value) -> Value:
    return f.cast("bitcast", f.binary("shl", f.binary("add", n, 127), 23), "float")


def log(f: Function, x: Value) -> Value:
    """Natural logarithm; -infinity at 0, NaN below."""
    tiny = f.fcmp("olt", x, 1.17549435e-38)
    scaled = f.select(tiny, f.fmul(x, 8388608.0), x)
    bits = f.cast("bitcast", scaled, "i32")
    shifted = f.binary("sub", bits, 0x3F3504F3)  # sqrt(1/2): the mantissa comes to lie in [0.707, 1.414)
    e = f.binary("ashr", shifted, 23)
    m = f.cast("bitcast", f.binary("sub", bits, f.binary("shl", e, 23)), "float")
    power = f.cast("sitofp", e, "float")
    power = f.select(tiny, f.fsub(power, 23.0), power)
    r = f.fsub(m, 1.0)
    square = f.fmul(r, r)
    p = _horner(f, r, [
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    ])  # fmt: skip
    y = f.fmul(f.fmul(p, r), square)
    y = f.fma(power, const(x.type, -2.12194440e-4), y)
    y = f.fadd(f.fma(square, -0.5, y), r)
    y = f.fma(power, const(x.type, 0.693359375), y)
    inf, nan = const(x.type, float("inf")), const(x.type, float("nan"))
    y = f.select(f.fcmp("oeq", x, float("inf")), inf, y)
    y = f.select(f.fcmp("oeq", x, 0.0), const(x.type, -float("inf")), y)
    return f.select(f.fcmp("ult", x, 0.0), nan, y)


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + e**-x), without overflow."""
    e = exp(f, f.value(x.type, f"fneg {f.intrinsic('fabs', x)}"))
    upper = f.fdiv(1.0, f.fadd(e, 1.0))
    return f.select(f.fcmp("oge", x, 0.0), upper, f.fmul(e, upper))


def tanh(f: Function, x: Value) -> Value:
    """Hyperbolic tangent: x + x**3 p(x**2) for |x| < 0.625, else from e**(2|x|)."""
    magnitude = f.intrinsic("fabs", x)
    z = f.fmul(x, x)
    p = _horner(f, z, [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1])
    near = f.fma(f.fmul(z, x), p, x)
    bounded = f.select(f.fcmp("ogt", magnitude, 10.0), const(x.type, 10.0), magnitude)
    far = f.fsub(1.0, f.fdiv(2.0, f.fadd(exp(f, f.fmul(bounded, 2.0)), 1.0)))
    out = f.select(f.fcmp("olt", magnitude, 0.625), near, far)
    out = f.intrinsic("copysign", out, x)  # that of -0 too
    return f.select(f.fcmp("uno", x, x), x, out)


def erf(f: Function, x: Value) -> Value:
    """Error function: its Taylor series for |x| < 1, a Chebyshev fit times e**(-x*x) beyond."""
    magnitude = f.intrinsic("fabs", x)
    z = f.fmul(x, x)
    p = _horner(f, z, [
        7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2,
        1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710,
    ])  # fmt: skip
    near = f.fmul(x, p)
    t = f.fdiv(1.0, f.fma(magnitude, const(x.type, 0.5), const(x.type, 1.0)))
    poly = _horner(f, t, [
        0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
        1.00002368, -1.26551223,
    ])  # fmt: skip
    negated = f.value(x.type, f"fneg {z}")
    far = f.fsub(1.0, f.fmul(t, exp(f, f.fadd(negated, poly))))
    far = f.intrinsic("copysign", far, x)
    out = f.select(f.fcmp("olt", magnitude, 1.0), near, far)
    return f.select(f.fcmp("uno", x, x), x, out)


__all__ = ["erf", "exp", "log", "sigmoid", "tanh"]
