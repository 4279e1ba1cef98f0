"""What TWOFOLD_DEBUG shows of a program, on stderr: 1 timings, 2 schedule, 4 loops, 6 assembly (the JIT shows 5, LLVM IR)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from twofold.base import flags

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram


def show(program: CpuProgram) -> None:
    """Print what the level asks for of a program just made."""
    level = flags.get("TWOFOLD_DEBUG")
    print(f"# cpu program {program.name}\n{program.report()}", file=sys.stderr)
    if level >= 4:
        from twofold.backends.cpu.loops.text import print_nest

        for step in program.steps:
            if hasattr(step, "nest"):
                print(f"# {step.nest.note}\n{print_nest(step.nest)}", file=sys.stderr)
    if level >= 6:
        from twofold.backends.cpu import jit

        for symbol, kernel in {c.kernel.symbol: c.kernel for c in program.calls}.items():
            print(f"# {symbol}\n{jit.assembly(kernel.ir, level=kernel.level)}", file=sys.stderr)


def timing(program: CpuProgram, seconds: float) -> None:
    """One line for each run."""
    print(f"twofold: cpu program {program.name}: {seconds * 1e3:.3f} ms", file=sys.stderr)
