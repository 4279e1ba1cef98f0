"""Writing LLVM IR as text: typed values, a function builder with loops, and the runtime (barrier, thread team)."""

from twofold.backends.cpu.llvm.builder import Function, Loop, Module
from twofold.backends.cpu.llvm.values import Index, Value, const, vector

__all__ = ["Function", "Index", "Loop", "Module", "Value", "const", "vector"]
