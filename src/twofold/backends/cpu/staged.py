"""A program in stages (``batches.py``): each runs its images in turns, and leaves what it made to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu.batches import Stage
from twofold.backends.cpu.recycle import POOL
from twofold.backends.interface import Memory, Program
from twofold.ir import Graph, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.backend import CpuProgram

Run = Callable[["CpuProgram", Sequence[Any], "int | None"], Sequence[Any]]


class StagedProgram(Program):
    """The programs of a graph's stages, one after the other. Safe to call from several threads."""

    def __init__(self, graph: Graph, found: Sequence[Stage], programs: Sequence[CpuProgram]):
        self.stages, self.programs = list(zip(found, programs)), list(programs)
        self.name, self.threads = graph.name, programs[0].threads
        self._inputs, self._outputs = list(graph.inputs), list(graph.outputs)
        self.batch = int(graph.inputs[0].shape[0])
        self._between = [v for stage, _ in self.stages for v in stage.outputs if v not in self._outputs]

    def __call__(self, buffers: Sequence[Any], version: int | None = None) -> list[Any]:
        return self.run(buffers, version, lambda program, arrays, version: program(arrays, version))

    def run(self, buffers: Sequence[Any], version: int | None, run: Run) -> list[Any]:
        """The outputs, with each call of a stage's program made by ``run``."""
        values: dict[Value, Any] = dict(zip(self._inputs, buffers))
        state = buffers[len(self._inputs) :]
        for stage, program in self.stages:
            read = [state[i] for i in stage.state]
            taken = [np.asarray(values[v]) for v in stage.inputs]
            whole: list[Any] = []
            for first in range(0, self.batch, stage.images):
                rows = slice(first, first + stage.images)
                made = run(program, [*(a[rows] for a in taken), *read], version)[: len(stage.outputs)]
                if stage.images == self.batch:
                    whole = list(made)
                    break
                whole = whole or [POOL.empty((self.batch, *a.shape[1:]), a.dtype) for a in made]
                for target, part in zip(whole, made):
                    target[rows] = part
            values |= zip(stage.outputs, whole)
        return [*(values[v] for v in self._outputs), *state]

    @property
    def memory(self) -> Memory:
        """What waits between stages counts as temporary: all of it, though some is gone before the rest is made."""
        parts = [program.memory for program in self.programs]
        size = lambda values: sum(v.spec.nbytes for v in values)
        return Memory(
            arguments=size(self._inputs),
            state=sum(p.state for p in parts),
            results=size(self._outputs),
            temporaries=size(self._between) + sum(p.temporaries for p in parts) + sum(p.results for p in parts[:-1]),
            kept=sum(p.kept for p in parts),
            preparing=max(p.preparing for p in parts),
        )

    def report(self) -> str:
        lines = [f"{self.batch} images in {len(self.stages)} stages, so that maps stay in the cache"]
        for number, (stage, program) in enumerate(self.stages, 1):
            lines += [f"stage {number}, {stage.images} at a time:", program.report()]
        return "\n".join(lines)
