"""How each dtype lies in memory and in registers, and every conversion.

bool is i8 in memory and i1 in registers; bfloat16 (i16 in memory) and float16 are float in registers. A narrow result is
rounded after each op, so that compiled code gives what the same ops give one by one.
"""

from __future__ import annotations

from twofold.backends.cpu.llvm import Function, Value, const, vector
from twofold.base.dtypes import DType, bfloat16, bool_, float16, float32, float64

_MEMORY = {"bool": "i8", "bfloat16": "i16", "float16": "half", "float32": "float", "float64": "double"}
_REGISTER = {"bool": "i1", "bfloat16": "float", "float16": "float", "float32": "float", "float64": "double"}


def memory_type(dtype: DType) -> str:
    """The LLVM type of one element in memory."""
    return _MEMORY.get(dtype.name) or f"i{dtype.bits}"


def register_type(dtype: DType) -> str:
    """The LLVM type in which it is computed."""
    return _REGISTER.get(dtype.name) or f"i{dtype.bits}"


def from_memory(f: Function, raw: Value, dtype: DType) -> Value:
    """A loaded element (or vector) as computed with."""
    if dtype is bool_:
        return f.icmp("ne", raw, 0)
    if dtype is bfloat16:
        return f.cast("bitcast", f.binary("shl", f.cast("zext", raw, "i32"), 16), "float")
    return f.cast("fpext", raw, "float") if dtype is float16 else raw


def load_wide(f: Function, pointer: Value, count: int | None, dtype: DType) -> Value:
    """``Function.vload`` of elements of ``dtype``, as computed with."""
    return from_memory(f, f.vload(pointer, count, memory_type(dtype)), dtype)


def store_narrow(f: Function, x: Value, pointer: Value, count: int | None, dtype: DType) -> None:
    """``Function.vstore`` of floats as elements of ``dtype``, rounded."""
    f.vstore(to_memory(f, rounded(f, x, dtype), dtype), pointer, count)


def to_memory(f: Function, x: Value, dtype: DType) -> Value:
    """A computed value (already rounded) as stored."""
    if dtype is bool_:
        return f.cast("zext", x, "i8")
    if dtype is bfloat16:
        return f.cast("trunc", f.binary("lshr", f.cast("bitcast", x, "i32"), 16), "i16")
    return f.cast("fptrunc", x, "half") if dtype is float16 else x


def rounded(f: Function, x: Value, dtype: DType) -> Value:
    """A float rounded (to nearest, ties to even) to a narrow dtype, still a float; others unchanged."""
    if dtype is float16:
        return f.cast("fpext", f.cast("fptrunc", x, "half"), "float")
    if dtype is not bfloat16:
        return x
    bits = f.cast("bitcast", x, "i32")
    odd = f.binary("and", f.binary("lshr", bits, 16), 1)
    near = f.binary("and", f.binary("add", f.binary("add", bits, 0x7FFF), odd), -0x10000)
    quiet = f.binary("or", f.binary("and", bits, -0x10000), 0x400000)
    return f.cast("bitcast", f.select(f.fcmp("uno", x, x), quiet, near), "float")


def convert(f: Function, x: Value, source: DType, target: DType) -> Value:
    """``x`` of one dtype as another. Out-of-range floats saturate in 64 bits and wrap below, as C on x86-64 does."""
    if source is target:
        return x
    if target is bool_:
        return f.fcmp("une", x, 0.0) if source.is_floating else f.icmp("ne", x, 0)
    if target.is_floating:
        return _to_float(f, x, source, target)
    to = register_type(target)
    if source.is_floating:
        return _to_integer(f, x, target)
    if source.bits > target.bits:
        return f.cast("trunc", x, to)
    if source.bits == target.bits and source is not bool_:
        return x
    return f.cast("sext" if source.kind == "i" else "zext", x, to)


def _to_float(f: Function, x: Value, source: DType, target: DType) -> Value:
    to = register_type(target)
    if not source.is_floating:
        return rounded(f, f.cast("sitofp" if source.kind == "i" else "uitofp", x, to), target)
    if x.element == "double" and to == "float":
        x = f.cast("fptrunc", x, to) if target is float32 else _to_odd(f, x)
    elif x.element != to:
        x = f.cast("fpext", x, to)
    return rounded(f, x, target)


def _to_odd(f: Function, x: Value) -> Value:
    """A double as a float *rounded to odd*: towards zero, with the last bit set if anything was lost. Rounded to 16 bits
    after that, it is what rounding the double once gives (Boldo and Melquiond, "When double rounding is odd", 2005)."""
    near = f.cast("fptrunc", x, "float")
    back = f.cast("fpext", near, "double")
    bits = f.cast("bitcast", near, "i32")
    beyond = f.fcmp("ogt", f.intrinsic("fabs", back), f.intrinsic("fabs", x))
    odd = f.binary("or", f.binary("sub", bits, f.cast("zext", beyond, "i32")), 1)
    return f.select(f.fcmp("one", back, x), f.cast("bitcast", odd, "float"), near)


def _saturating(f: Function, x: Value, signed: bool) -> Value:
    lanes = f"v{x.lanes}" if x.lanes else ""
    suffix = "f64" if x.element == "double" else "f32"
    name = f"llvm.fpto{'s' if signed else 'u'}i.sat.{lanes}i64.{lanes}{suffix}"
    return f.call(name, vector("i64", x.lanes), [x])


def _to_integer(f: Function, x: Value, target: DType) -> Value:
    wide = _saturating(f, x, True)
    if target.name == "uint64":
        return f.select(f.fcmp("olt", x, 0.0), wide, _saturating(f, x, False))
    return wide if target.bits == 64 else f.cast("trunc", wide, register_type(target))


def number(dtype: DType, value: object, lanes: int = 0) -> Value:
    """A constant of the register type; floats come as hexadecimal text."""
    kind = vector(register_type(dtype), lanes)
    return const(kind, float.fromhex(value) if isinstance(value, str) else value)  # type: ignore[arg-type]


def lanes_for(dtype: DType, lanes: int) -> int:
    """Lanes of a vector of this dtype where ``lanes`` float32 fill a register."""
    return max(2, lanes // 2) if dtype is float64 else lanes


__all__ = [
    "convert", "float32", "from_memory", "lanes_for", "load_wide", "memory_type", "number", "register_type", "rounded",
    "store_narrow", "to_memory",
]  # fmt: skip
