"""The graph: specs, values, nodes, ops, and the builder that records them."""

from twofold.ir.builder import Builder, bind, context, current_builder, grad_mode, precision_mode, recording, scope
from twofold.ir.interpret import interpret
from twofold.ir.op import OPS, Op, Sample, register
from twofold.ir.values import Graph, Node, Spec, State, Value

__all__ = [
    "OPS", "Builder", "Graph", "Node", "Op", "Sample", "Spec", "State", "Value",
    "bind", "context", "current_builder", "grad_mode", "interpret", "precision_mode",
    "recording", "register", "scope",
]  # fmt: skip
