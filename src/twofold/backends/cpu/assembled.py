"""What can run: a program's native parts, and where in memory they find what they work with. Nothing here knows how one is
made, so a process that finds its program on disk loads none of the compiler."""

from __future__ import annotations

from dataclasses import dataclass, field

from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.steps import HostStep, Plan, Step
from twofold.backends.cpu.program import Kernel, Program, Ref

Segment = Program | HostStep
ARENA, ERRORS, KEPT, CLOCK, FIRST = 0, 1, 2, 3, 4  # slots of the pointer table; the caller's buffers and constants follow


@dataclass
class Call:
    """One kernel of the program and where its parameters lie; which segment it is in, and whether all wait before it; the
    graph's ops that it computes, and the layers they come from."""

    kernel: Kernel
    refs: list[Ref]
    step: Step
    segment: int = 0
    waits: bool = False
    ops: str = ""
    layers: str = ""

    def __str__(self) -> str:
        how = f" ({self.kernel.note})" if self.kernel.note not in ("", self.ops) else ""
        return f"{self.kernel.symbol}: {self.ops}{how}" + (f" [{self.layers}]" if self.layers else "")


@dataclass
class Assembled:
    """What can run, in order: ``prepare`` when what it reads has changed, ``segments`` at every call.

    ``places`` says where each buffer lies; ``arena`` and ``prepare_arena`` are the bytes of temporaries of the two parts,
    ``kept`` those of results that stay.
    """

    plan: Plan = field(repr=False)
    places: dict[Buffer, Ref]
    segments: list[Segment]
    prepare: list[Segment]
    arena: int
    prepare_arena: int
    kept: int
    calls: list[Call]
    barriers: int
