"""What a kernel computes, before any code: index arithmetic, scalar expressions, loop nests. Knows nothing of LLVM."""

from twofold.backends.cpu.loops.expr import Buffer, Expr, acc, const, from_index, in_range, load, op, select, with_guard
from twofold.backends.cpu.loops.index import Affine, Var, constant, floordiv, mod, var
from twofold.backends.cpu.loops.nest import Accumulator, Nest, Store

__all__ = [
    "Accumulator", "Affine", "Buffer", "Expr", "Nest", "Store", "Var",
    "acc", "const", "constant", "floordiv", "from_index", "in_range", "load", "mod", "op", "select", "var", "with_guard",
]  # fmt: skip
