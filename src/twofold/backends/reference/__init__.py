"""The reference backend: every op by its record's NumPy meaning, node by node. The oracle, and the debugger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.backends.host import HostBackend
from twofold.backends.interface import Device, Program
from twofold.base.errors import TwofoldError
from twofold.ir import Graph, Node, interpret
from twofold.ir.builder import annotate
from twofold.ir.interpret import run_reference


class ReferenceProgram(Program):
    """Interprets the graph at each call."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def __call__(self, buffers: Sequence[np.ndarray], version: int | None = None) -> list[np.ndarray]:
        return [np.asarray(b) for b in interpret(self.graph, buffers, _located)]

    def report(self) -> str:
        return f"{len(self.graph.nodes)} nodes, interpreted one by one"


def _located(node: Node, inputs: list[Any]) -> Sequence[Any]:
    try:
        return run_reference(node, inputs)
    except TwofoldError as error:
        annotate(error, node.scope)
        raise


class ReferenceBackend(HostBackend):
    """NumPy arrays as buffers; programs are interpreted."""

    name = "reference"

    def devices(self) -> list[Device]:
        return [Device("reference")]

    def compile(self, graph: Graph, device: Device, *, donated: Sequence[int] = ()) -> Program:
        return ReferenceProgram(graph)


BACKEND = ReferenceBackend()
