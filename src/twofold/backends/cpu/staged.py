"""A program in stages (``batches.py``): each runs its images in turns, and leaves what it made to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.backends.cpu import room
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
        self.batch = int(graph.inputs[0].shape[0])
        self._graph, self._asked = graph, False
        between = [v for stage in found for v in stage.outputs if v not in graph.outputs]
        self._between = sum(int(v.spec.nbytes) for v in between)
        last = {v: k for k, stage in enumerate(found) for v in stage.inputs}
        self._done = [[v for v in between if last[v] == k] for k in range(len(found))]  # after each stage

    def __call__(self, buffers: Sequence[Any], version: int | None = None) -> list[Any]:
        return self.run(buffers, version, lambda program, arrays, version: program(arrays, version))

    def run(self, buffers: Sequence[Any], version: int | None, run: Run) -> list[Any]:
        """The outputs, with each call of a stage's program made by ``run``."""
        self._ask()
        graph = self._graph
        values: dict[Value, Any] = dict(zip(graph.inputs, buffers))
        state = buffers[len(graph.inputs) :]
        for (stage, program), done in zip(self.stages, self._done):
            taken = [np.asarray(values[v]) for v in stage.inputs]
            turn = lambda rows: run(program, [*(a[rows] for a in taken), *(state[i] for i in stage.state)], version)  # noqa: B023 - called at once
            values |= zip(stage.outputs, self._turns(stage, turn))
            for value in done:
                del values[value]
        return [*(values[v] for v in graph.outputs), *state]

    def _turns(self, stage: Stage, turn: Callable[[slice], Sequence[Any]]) -> list[Any]:
        """What a stage gives for the whole batch."""
        if stage.images == self.batch:
            return list(turn(slice(None)))[: len(stage.outputs)]
        whole: list[Any] = []
        for first in range(0, self.batch, stage.images):
            rows = slice(first, first + stage.images)
            made = turn(rows)[: len(stage.outputs)]
            whole = whole or [POOL.empty((self.batch, *a.shape[1:]), a.dtype) for a in made]
            for target, part in zip(whole, made):
                target[rows] = part
        return whole

    def _ask(self) -> None:
        """See once that there is memory for all stages, before the first begins."""
        if not self._asked:
            memory = self.memory
            needed = max(memory.temporaries, memory.preparing) + memory.kept
            room.require(f"{self.name} on the CPU", needed, self.batch, self._fixed(memory.kept))
            self._asked = True

    def _fixed(self, kept: int) -> int:
        """Of that the part that does not grow with the batch: also what stages work in that take a few images at a time, unless
        that alone is too much (of a smaller batch they would take fewer)."""
        turns = sum(program.memory.temporaries for stage, program in self.stages if stage.images < self.batch)
        free = room.available()
        return kept + turns if free is not None and kept + turns < free else kept

    @property
    def memory(self) -> Memory:
        """What waits between stages, and what one turn gives, counts as temporary."""
        parts = [program.memory for program in self.programs]
        size = lambda values: sum(v.spec.nbytes for v in values)
        return Memory(
            arguments=size(self._graph.inputs),
            state=size(s.input for s in self._graph.state),
            results=size(self._graph.outputs),
            temporaries=self._between + sum(p.temporaries for p in parts) + max(p.results for p in parts),
            kept=sum(p.kept for p in parts),
            preparing=max(p.preparing for p in parts),
        )

    def report(self) -> str:
        lines = [f"{self.batch} images in {len(self.stages)} stages, so that maps stay in the cache"]
        for number, (stage, program) in enumerate(self.stages, 1):
            lines += [f"stage {number}, {stage.images} at a time:", program.report()]
        return "\n".join(lines)
