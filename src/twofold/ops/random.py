"""Random bits from a counter (Philox4x32-10), and the distributions made from them.

A state is ``uint32[4]`` (see ``twofold.base.rng``). Drawing does not change it: ``rng_next`` gives the state of
the next draw. So the same program gives the same bits on every backend, eager or compiled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from twofold.base import rng
from twofold.base.dtypes import DType, as_dtype, float32, float64, int64, uint32, uint64
from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.base.shapes import Shape, as_shape
from twofold.ir import Op, Sample, Spec, Value, bind, register
from twofold.ops.convert import cast, constant
from twofold.ops.elementwise import bitwise_right_shift, cos, less, log, sqrt
from twofold.ops.movement import reshape, slice_along

STATE = Spec((4,), uint32)


def _check(name: str, state: Spec) -> None:
    if state != STATE:
        raise ShapeError(f"{name}: the state is {state}; expected {STATE}, as tw.random.get_state() gives")


def _bits_infer(state: Spec, *, shape: Shape) -> Spec:
    _check("random_bits", state)
    return Spec(as_shape(shape), uint32)


def _next_infer(state: Spec) -> Spec:
    _check("rng_next", state)
    return STATE


_STATES = (rng.seed_state(7, 2), np.array([1, 2, 0xFFFFFFFF, 3], np.uint32))
RANDOM_BITS = register(
    Op(
        "random_bits", _bits_infer,
        lambda state, *, shape: rng.random_bits(state, math.prod(shape)).reshape(shape), None,
        lambda: (Sample((s,), {"shape": shape}, False) for s, shape in zip(_STATES, ((3, 5), (2,)))),
        kind="random", doc="Uniform uint32 words of a counter-based generator.",
    )
)  # fmt: skip
RNG_NEXT = register(
    Op(
        "rng_next", _next_infer, rng.next_state, None, lambda: (Sample((s,), {}, False) for s in _STATES),
        kind="random", doc="The state of the next draw.",
    )
)  # fmt: skip


def random_bits(state: Value, shape: Any) -> Value:
    """Random ``uint32`` words of the given shape for this state."""
    return bind(RANDOM_BITS, state, shape=as_shape(shape))


def rng_next(state: Value) -> Value:
    """The state that the next draw takes."""
    return bind(RNG_NEXT, state)


# how many random bits a float of each dtype can hold in [0, 1) without rounding up to 1
_MANTISSA = {"float32": 24, "float16": 11, "bfloat16": 8}


def _floating(name: str, dtype: Any) -> DType:
    dtype = as_dtype(dtype)
    if not dtype.is_floating:
        raise DtypeError(f"{name}: dtype {dtype.name}; expected a floating dtype")
    return dtype


def _shifted(bits: Value, by: int) -> Value:
    return bitwise_right_shift(bits, constant(np.asarray(by, np.uint32), near=(bits,)))


def _halves(bits: Value) -> tuple[Value, Value]:
    """Two arrays from one draw of twice the size, whose first dimension is 2."""
    return tuple(reshape(slice_along(bits, 0, i, i + 1), bits.shape[1:]) for i in (0, 1))  # type: ignore[return-value]


def uniform(state: Value, shape: Any, dtype: Any = float32) -> Value:
    """Floats in [0, 1), every one a multiple of 2**-24 (float64: 2**-53, from two words)."""
    dtype, shape = _floating("uniform", dtype), as_shape(shape)
    if dtype is float64:
        high, low = _halves(random_bits(state, (2, *shape)))
        return (cast(_shifted(high, 5), dtype) * 2.0**26 + cast(_shifted(low, 6), dtype)) * 2.0**-53
    bits = _MANTISSA[dtype.name]
    return cast(_shifted(random_bits(state, shape), 32 - bits), dtype) * 2.0**-bits


def normal(state: Value, shape: Any, dtype: Any = float32) -> Value:
    """Standard normal floats (Box and Muller 1958, from two uniforms each)."""
    dtype, shape = _floating("normal", dtype), as_shape(shape)
    wide = float64 if dtype is float64 else float32
    radius, angle = _halves(uniform(state, (2, *shape), wide))
    return cast(sqrt(log(1.0 - radius) * -2.0) * cos(angle * (2 * math.pi)), dtype)


def bernoulli(state: Value, probability: float, shape: Any) -> Value:
    """Booleans that are true with ``probability`` (a number in [0, 1], kept to 24 bits)."""
    if not 0.0 <= probability <= 1.0:
        raise ArgumentError(f"bernoulli: probability {probability}; expected a number in [0, 1]")
    bits = _shifted(random_bits(state, shape), 8)
    return less(bits, constant(np.asarray(round(probability * 2**24), np.uint32), near=(bits,)))


def randint(state: Value, low: int, high: int, shape: Any, dtype: Any = int64) -> Value:
    """Integers in [low, high), by the high half of a 32 x 32 bit product (bias below (high-low) / 2**32)."""
    if not 0 < high - low <= 2**32:
        raise ArgumentError(f"randint: low={low}, high={high}; expected low < high <= low + 2**32")
    wide = cast(random_bits(state, shape), uint64) * (high - low)
    scaled = bitwise_right_shift(wide, constant(np.asarray(32, np.uint64), near=(wide,)))
    return cast(cast(scaled, int64) + low, dtype)
