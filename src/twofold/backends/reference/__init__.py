"""The reference backend: every op by its record's NumPy meaning, node by node. The oracle, and the debugger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.backends.interface import Backend, Device, Program
from twofold.base.errors import TwofoldError
from twofold.ir import Graph, Node, Op, Spec, interpret
from twofold.ir.interpret import run_reference


class ReferenceProgram(Program):
    """Interprets the graph at each call."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def __call__(self, buffers: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(b) for b in interpret(self.graph, buffers, _located)]

    def report(self) -> str:
        return f"{len(self.graph.nodes)} nodes, interpreted one by one"


def _located(node: Node, inputs: list[Any]) -> Sequence[Any]:
    try:
        return run_reference(node, inputs)
    except TwofoldError as error:
        if node.scope and error.args and not getattr(error, "located", False):
            error.located = True  # type: ignore[attr-defined]
            error.args = (f"{node.scope}: {error.args[0]}", *error.args[1:])
        raise


class ReferenceBackend(Backend):
    """NumPy arrays as buffers."""

    name = "reference"

    def devices(self) -> list[Device]:
        return [Device("cpu"), Device("reference")]

    def put(self, array: np.ndarray, device: Device) -> np.ndarray:
        return array

    def get(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def run(
        self, op: Op, buffers: Sequence[Any], attrs: dict[str, Any], specs: Sequence[Spec], device: Device
    ) -> Sequence[Any]:
        out = op.ref(*buffers, **attrs)
        return out if op.multi else (out,)

    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        return ReferenceProgram(graph)


BACKEND = ReferenceBackend()
