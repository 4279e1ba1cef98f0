"""The op table by family, and composite functions over it.

Importing this package fills ``twofold.ir.OPS`` and gives values their operators.
"""

from twofold.ir.operators import IMPLEMENTATIONS
from twofold.ops import (
    arrange,
    control,
    conv,
    creation,
    elementwise,
    gather,
    indexing,
    linalg,
    matmul,
    movement,
    normalization,
    pool,
    random,
    reduction,
    sets,
    sorting,
)
from twofold.ops.convert import as_numpy, cast, constant, dim_value, is_scalar, together, value
from twofold.ops.creation import arange, full, iota
from twofold.ops.elementwise import ELEMENTWISE, barrier, clip, detach, identity, safe_divide, where
from twofold.ops.movement import sum_to

IMPLEMENTATIONS.update(
    add=elementwise.add, subtract=elementwise.subtract, multiply=elementwise.multiply, divide=elementwise.divide,
    floor_divide=elementwise.floor_divide, remainder=elementwise.remainder, pow=elementwise.pow_,
    bitwise_and=elementwise.bitwise_and, bitwise_or=elementwise.bitwise_or, bitwise_xor=elementwise.bitwise_xor,
    bitwise_left_shift=elementwise.bitwise_left_shift, bitwise_right_shift=elementwise.bitwise_right_shift,
    less=elementwise.less, less_equal=elementwise.less_equal, greater=elementwise.greater,
    greater_equal=elementwise.greater_equal, negative=elementwise.negative, abs=elementwise.abs_,
    bitwise_invert=elementwise.bitwise_invert, positive=elementwise.positive, matmul=matmul.matmul,
    getitem=indexing.getitem,
)  # fmt: skip

__all__ = [
    "ELEMENTWISE", "arange", "arrange", "as_numpy", "barrier", "cast", "clip", "constant", "control", "conv", "creation",
    "detach",
    "dim_value", "elementwise", "full", "gather", "identity", "indexing", "iota", "is_scalar", "linalg", "matmul", "movement",
    "normalization", "pool",
    "random", "reduction", "safe_divide", "sets", "sorting", "sum_to", "together", "value", "where",
]  # fmt: skip
