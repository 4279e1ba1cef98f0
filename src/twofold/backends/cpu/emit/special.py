"""Internal ops that expressions may use beside the op table: checked indices, and Philox random bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.llvm import Value, const, vector
from twofold.base import rng

if TYPE_CHECKING:
    from twofold.backends.cpu.emit.body import Body
    from twofold.backends.cpu.loops import Expr


def _checked(body: Body, e: Expr, args: list[Value], size: int, code: int, negative: int = 1) -> Value:
    """An index in [-size, size) made non-negative; one outside reads as 0, and the first one found leaves ``code`` and
    itself in the program's error word (``emit.nest.ERRORS``)."""
    f, (x,) = body.f, args
    if e.args[0].dtype.bits < 64:  # the size may not fit a narrow dtype
        x = f.cast("sext" if e.args[0].dtype.kind == "i" else "zext", x, "i64")
    given = x
    if negative and e.args[0].dtype.kind == "i":
        x = f.select(f.icmp("slt", x, 0), f.binary("add", x, size), x)
    wrong = f.icmp("uge", x, size)
    found = body.masked(wrong) if wrong.lanes else wrong
    with f.when(f.reduce(lambda a, b: f.binary("or", a, b), found) if wrong.lanes else found):
        _leave(body, found, given, code)
    x = f.select(wrong, const(x.type, 0), x)
    return x if e.dtype.bits == 64 else f.cast("trunc", x, f"i{e.dtype.bits}")


def _leave(body: Body, wrong: Value, given: Value, code: int) -> None:
    """Write ``code`` and the index of the first lane that is ``wrong``, unless an error is there already."""
    f, errors = body.f, body.errors
    assert errors is not None, "nest_kernel gives checking nests an error word"
    if wrong.lanes:
        bits = f.value(f"i{wrong.lanes}", f"bitcast {wrong} to i{wrong.lanes}")
        lane = f.intrinsic("cttz", bits, const("i1", True))
        given = f.extract(given, lane)
    tried = f.value("{ i64, i1 }", f"cmpxchg {errors}, i64 0, i64 {code} monotonic monotonic")
    with f.when(f.value("i1", f"extractvalue {tried}, 1")):
        f.store(given, f.gep(errors, 1, "i64"))


def _fma(body: Body, _e: Expr, args: list[Value]) -> Value:
    """a * b + c, rounded once where the machine can."""
    return body.f.fma(*args)


def _multiply_high(body: Body, x: Value, m: int) -> tuple[Value, Value]:
    """The (high, low) words of a 32 x 32 bit product."""
    f = body.f
    product = f.binary("mul", f.cast("zext", x, "i64"), m)
    return f.cast("trunc", f.binary("lshr", product, 32), "i32"), f.cast("trunc", product, "i32")


def _philox(body: Body, _e: Expr, args: list[Value]) -> Value:
    """Word ``args[0] % 4`` of block ``args[0] / 4`` of the draw given by four state words (base/rng.py)."""
    f = body.f
    number, key0, key1, draw0, draw1 = args
    block = f.binary("lshr", number, 2)
    c = [f.cast("trunc", block, "i32"), f.cast("trunc", f.binary("lshr", block, 32), "i32"), draw0, draw1]
    keys = [key0, key1]
    for _ in range(rng.ROUNDS):
        high0, low0 = _multiply_high(body, c[0], rng.MULTIPLIERS[0])
        high1, low1 = _multiply_high(body, c[2], rng.MULTIPLIERS[1])
        c = [
            f.binary("xor", f.binary("xor", high1, c[1]), keys[0]), low1,
            f.binary("xor", f.binary("xor", high0, c[3]), keys[1]), low0,
        ]  # fmt: skip
        keys = [f.binary("add", k, w) for k, w in zip(keys, rng.WEYL)]
    word = f.cast("trunc", f.binary("and", number, 3), "i32")
    out = c[3]
    for k in (2, 1, 0):
        out = f.select(f.icmp("eq", word, k), c[k], out)
    return out


SPECIAL: dict[str, Any] = {"checked": _checked, "philox": _philox, "fma": _fma}

__all__ = ["SPECIAL", "vector"]
