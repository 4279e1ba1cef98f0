"""Internal ops that expressions may use beside the op table: checked indices, and Philox random bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.llvm import Value, const, vector
from twofold.backends.cpu.loops.index import var
from twofold.base import rng

if TYPE_CHECKING:
    from twofold.backends.cpu.emit.body import Body
    from twofold.backends.cpu.loops import Expr

WORDS = 4  # of a block of Philox
LOW = 0xFFFFFFFF


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


def _philox(body: Body, e: Expr, args: list[Value]) -> Value:
    """Word ``args[0] % 4`` of block ``args[0] / 4`` of the draw given by four state words (base/rng.py)."""
    f, (number, *state) = body.f, args
    if _in_whole_blocks(body, e.args[0]):
        blocks = number.lanes // WORDS
        state = [f.shuffle(x, None, range(blocks)) for x in state]
        words = _block(body, f.shuffle(number, None, range(0, number.lanes, WORDS)), state)
        low, high = (f.shuffle(words[k], words[k + 1], range(2 * blocks)) for k in (0, 2))
        return f.shuffle(low, high, [k * blocks + b for b in range(blocks) for k in range(WORDS)])
    *words, out = _block(body, number, state)
    place = f.cast("trunc", f.binary("and", number, WORDS - 1), "i32")
    for k, word in enumerate(words):
        out = f.select(f.icmp("eq", place, k), word, out)
    return out


def _in_whole_blocks(body: Body, number: Expr) -> bool:
    """Whether lanes are neighbouring words from the first of a block on: a vector begins at a multiple of its lanes."""
    if body.vector is None or number.kind != "index" or number.extra.terms.get(body.vector) != 1:
        return False
    rest = number.extra - var(body.vector)
    whole = rest.const % WORDS == 0 and all(c % WORDS == 0 for c in rest.terms.values())
    return whole and not rest.hides(body.vector) and body.lanes % WORDS == 0 and body.lanes > WORDS


def _block(body: Body, number: Value, state: list[Value]) -> list[Value]:
    """The four words of the blocks in which the words of these numbers are. On the way words are the lower halves of i64s, of
    which a multiplication of 32 x 32 bits reads no more."""
    f = body.f
    keys, draw = [[f.cast("zext", x, "i64") for x in state[at : at + 2]] for at in (0, 2)]
    block = f.binary("lshr", number, 2)
    c = [block, f.binary("lshr", block, 32), *draw]
    for _ in range(rng.ROUNDS):
        product0, product1 = (f.binary("mul", f.binary("and", c[k], LOW), m) for k, m in zip((0, 2), rng.MULTIPLIERS))
        high0, high1 = (f.binary("lshr", product, 32) for product in (product0, product1))
        c = [
            f.binary("xor", f.binary("xor", high1, c[1]), keys[0]), product1,
            f.binary("xor", f.binary("xor", high0, c[3]), keys[1]), product0,
        ]  # fmt: skip
        keys = [f.binary("add", k, w) for k, w in zip(keys, rng.WEYL)]
    return [f.cast("trunc", word, "i32") for word in c]


SPECIAL: dict[str, Any] = {"checked": _checked, "philox": _philox, "fma": _fma}

__all__ = ["SPECIAL", "vector"]
