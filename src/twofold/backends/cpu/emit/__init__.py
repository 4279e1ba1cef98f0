"""From scalar expressions and loop nests to LLVM IR: types and casts, elementwise functions, loops, vectors, threads."""

from twofold.backends.cpu.emit.nest import nest_kernel

__all__ = ["nest_kernel"]
