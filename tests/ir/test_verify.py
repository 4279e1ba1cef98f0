"""The verifier finds each way in which a graph can be malformed, and names the node and the pass."""

from __future__ import annotations

import pytest

from twofold.base.dtypes import float32
from twofold.base.errors import GraphError
from twofold.ir import Graph, Node, Spec, Value
from twofold.ir.text import parse_graph
from twofold.ir.values import State
from twofold.ir.verify import verify

TEXT = """
graph f(%x: f32[2,3], %p: bool[]) {
  state %w: f32[3]
  %0 = multiply(%x, %w) : f32[2,3]  # features.0
  %1 = sum(%0) {axes=(0,), keepdims=false} : f32[3]
  %2 = cond(%p, %1) {
    true = graph(%a: f32[3]) { return %a },
    false = graph(%a: f32[3]) { %0 = negative(%a) : f32[3]  return %0 }
  } : f32[3]
  next %w = %2
  return %1
}
"""


def _swap(graph: Graph) -> None:
    graph.nodes[0], graph.nodes[1] = graph.nodes[1], graph.nodes[0]


def _assign_twice(graph: Graph) -> None:
    graph.nodes.append(graph.nodes[0])


def _wrong_type(graph: Graph) -> None:
    graph.nodes[0].outputs[0].spec = Spec((9, 9), float32)


def _broken_operands(graph: Graph) -> None:
    graph.nodes[0].inputs = (graph.inputs[0], graph.inputs[1])


def _foreign(graph: Graph) -> None:
    graph.outputs.append(Value(Spec((), float32)))


def _foreign_in_branch(graph: Graph) -> None:
    branch = graph.nodes[2].attrs["false"]
    branch.nodes[0].inputs = (graph.nodes[1].outputs[0],)


def _branch_signature(graph: Graph) -> None:
    graph.nodes[2].attrs["true"].inputs = []


def _branch_state(graph: Graph) -> None:
    branch = graph.nodes[2].attrs["true"]
    branch.state.append(State("s", branch.inputs[0], branch.inputs[0]))


def _state_type(graph: Graph) -> None:
    graph.state[0].output = graph.nodes[0].outputs[0]


def _state_twice(graph: Graph) -> None:
    graph.state.append(State("w", Value(Spec((), float32)), graph.nodes[1].outputs[0]))


def _state_lost(graph: Graph) -> None:
    graph.state[0].output = Value(Spec((3,), float32))


def _wrong_producer(graph: Graph) -> None:
    graph.nodes[1].outputs[0].producer = Node(graph.nodes[1].op, (), {})


BROKEN = {
    _swap: r"node 0, sum\(f32\[2,3\]\): operand 0, .* is used before it is defined",
    _assign_twice: r"node 3, multiply.* in features\.0: .* is assigned twice",
    _wrong_type: r"node 0, multiply.* in features\.0: outputs are f32\[9,9\]; the op infers f32\[2,3\]",
    _broken_operands: r"node 0, multiply.* in features\.0: multiply: operands have dtypes",
    _foreign: "output 1, .*, is no value of this graph",
    _foreign_in_branch: "node 2, cond.*node 0, negative.*belongs to another graph",
    _branch_signature: "node 2, cond.*",
    _branch_state: "node 2, cond.*: its sub-graph .* has state",
    _state_type: r"state 'w' enters as f32\[3\] and leaves as f32\[2,3\]",
    _state_twice: "two states are called 'w'",
    _state_lost: "its next value .* is no value of this graph",
    _wrong_producer: "node 1, sum.*output 0 does not point back",
}


def test_a_sound_graph_passes():
    graph = parse_graph(TEXT)
    assert verify(graph) is graph


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_damage_is_found_and_named(damage):
    graph = parse_graph(TEXT)
    damage(graph)
    with pytest.raises(
        GraphError, match=f"^after fusing: graph 'f': .*{BROKEN[damage]}|^after fusing: .*{BROKEN[damage]}"
    ):
        verify(graph, "fusing")
