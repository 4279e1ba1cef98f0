"""What TWOFOLD_DEBUG shows of a program, on stderr: docs/how-to/look-inside.md. The pipeline prints level 3 itself.

A level shows what the lower ones do too. From 2 on programs are made anew instead of being read from disk whole; kernels are
shown whether or not their objects were cached.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from twofold.base import flags

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram
    from twofold.backends.cpu.program import Kernel


def show(program: CpuProgram) -> None:
    """Print what the level asks for of a program just made."""
    level = flags.get("TWOFOLD_DEBUG")
    _print(f"# cpu program {program.name}\n{program.report()}")
    if level >= 4:
        from twofold.backends.cpu.loops.text import print_nest

        for step in program.steps:
            if hasattr(step, "nest"):
                _print(f"# loops: {step.nest.note or 'copy'}\n{print_nest(step.nest)}")
    if level >= 5:
        for kernel in _kernels(program):
            _print(f"# LLVM IR: {kernel.symbol}: {kernel.note}\n{kernel.ir}")
    if level >= 6:
        from twofold.backends.cpu import jit

        for kernel in _kernels(program):
            _print(f"# assembly: {kernel.symbol}: {kernel.note}\n{jit.assembly(kernel.ir, level=kernel.level)}")


def timing(program: CpuProgram, seconds: float) -> None:
    """One line for each run."""
    _print(f"twofold: cpu program {program.name}: {seconds * 1e3:.3f} ms, {program.threads} threads")


def _kernels(program: CpuProgram) -> list[Kernel]:
    """The different kernels, in the order of their first call; those done once come first."""
    return list({k.symbol: k for part in program.parts for k in getattr(part, "kernels", [])}.values())


def _print(text: str) -> None:
    print(text, file=sys.stderr)
