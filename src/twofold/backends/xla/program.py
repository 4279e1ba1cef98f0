"""A graph as one jitted XLA program, with its state donated and updated in place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.backends.interface import Device, Program
from twofold.backends.xla import checks, lower, runtime
from twofold.backends.xla.placement import Placement, placement, put
from twofold.ir import Graph

AHEAD = 2  # calls whose range checks may be outstanding: the host runs ahead of the device by as many


class Pending:
    """Flags of range checks that have not been looked at: reading one waits for its program."""

    def __init__(self) -> None:
        self._flags: list[tuple[Any, list[str]]] = []
        self._lock = threading.RLock()  # a signal's handler may read a result, too

    def add(self, flag: Any, messages: list[str]) -> None:
        with self._lock:
            self._flags.append((flag, messages))

    def look(self, keep: int = 0) -> None:
        """Raise for the first check that failed, looking at all calls but the last ``keep``."""
        with self._lock:
            due = self._flags[: len(self._flags) - keep] if keep else self._flags
            self._flags = self._flags[len(due) :]
        for flag, messages in due:
            checks.report(runtime.fetch(flag.addressable_data(0)), messages)


def jitted(graph: Graph, where: Placement, donated: Sequence[int], messages: list[str]) -> tuple[Any, list[Any]]:
    """The graph as a function that jax compiles for the devices of ``where``, and how its inputs lie on them.

    The devices need not be here: those of a topology will do for compiling.
    """
    data = [[where.of_data(v.spec) for v in values] for values in (graph.inputs, graph.outputs)]
    state = [where.of_state(s.input.spec) for s in graph.state]
    inputs, outputs = data[0] + state, data[1] + state
    function = runtime.load().jit(
        lower.function_of(graph, messages),
        in_shardings=tuple(inputs),
        out_shardings=(outputs, where.whole),
        donate_argnums=tuple(donated),
    )
    return function, inputs


class XlaProgram(Program):
    """Calls the compiled function; jax compiles it at the first call."""

    def __init__(self, graph: Graph, device: Device, donated: Sequence[int], pending: Pending):
        self.graph, self.device, self.donated, self.pending = graph, device, tuple(donated), pending
        self.messages: list[str] = []
        self.function, self.inputs = jitted(graph, placement(device), self.donated, self.messages)
        self.joint = any(map(runtime.is_joint, self.inputs))  # needs all processes

    def place(self, index: int, array: np.ndarray) -> Any:
        """A host array where input ``index`` wants it: each device gets only its part."""
        with runtime.x64():
            return put(array, self.inputs[index])

    def __call__(self, buffers: Sequence[Any], version: int | None = None) -> list[Any]:
        self.pending.look(AHEAD)
        if self.joint:
            runtime.begins_joint()
        else:
            runtime.begins(buffers)
        with runtime.x64():
            placed = [put(b, s) for b, s in zip(buffers, self.inputs)]
            try:
                results, flag = self.function(*placed)
            except runtime.load().errors.JaxRuntimeError as error:
                raise runtime.translated(error, self.graph.name) from error
        if self.messages:
            self.pending.add(flag, self.messages)
        return results

    def text(self, compiled: bool = True) -> str:
        """The compiled program's HLO: fusions, library calls, collectives. Not ``compiled``: the HLO that XLA is given."""
        jax = runtime.load()
        with runtime.x64():
            shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype.numpy) for v in self.graph.all_inputs]
            lowered = self.function.lower(*shapes)
            return lowered.compile().as_text() if compiled else lowered.as_text(dialect="hlo")

    def report(self) -> str:
        """What became of the graph: one program, and how its values lie."""
        split = [v.name or "?" for v, s in zip(self.graph.all_inputs, self.inputs) if not s.is_fully_replicated]
        where = placement(self.device)
        lines = [f"{len(self.graph.nodes)} nodes as one XLA program on {self.device} ({len(where.devices)} device(s))"]
        lines += [f"{len(self.donated)} of {len(self.graph.state)} state buffers updated in place"]
        if where.is_group:
            lines += [f"split over the devices: {', '.join(split) or 'nothing'}; all else is whole on each"]
        return "\n".join(lines)
