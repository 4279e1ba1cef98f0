"""Printing and parsing graphs: it reads well, it comes back equal, and a hostile text is an error and nothing worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_strategies import arguments, graphs
from twofold import ops
from twofold.base.dims import symbol
from twofold.base.dtypes import bfloat16, float16, float32, float64, int32
from twofold.base.errors import GraphError
from twofold.ir import Builder, Graph, Spec, interpret, recording, scope
from twofold.ir.parse import MAX_DEPTH
from twofold.ir.text import constants_of, parse_graph, print_graph
from twofold.ir.verify import verify
from twofold.ops import control, movement, reduction


def build(function, *specs: Spec, names: tuple[str, ...] = ("x", "y", "z")) -> Graph:
    builder = Builder("step")
    values = [builder.input(spec, name) for spec, name in zip(specs, names)]
    with recording(builder):
        outputs = function(*values)
    return builder.finish(outputs)


class Cell:
    """The least that a builder takes for a variable."""

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.name, self.shape, self.dtype, self.requires_grad = name, shape, float32, True

    def assign(self, value: object) -> None: ...


def training_step() -> Graph:
    builder = Builder("step")
    x = builder.input(Spec((symbol("N"), 3), float32), "x")
    weight = Cell("fc.weight", (3,))
    with recording(builder):
        with scope("fc"):
            y = x * builder.read(weight)
        loss = reduction.mean(reduction.sum(y, axis=1))
        builder.write(weight, builder.read(weight) - 0.1)
    return builder.finish([loss])


def test_a_step_reads_well():
    assert print_graph(training_step()) == (
        """\
graph step(%x: f32[N,3]) {
  state %fc.weight: f32[3]
  %0 = multiply(%x, %fc.weight) : f32[N,3]  # fc
  %1 = sum(%0) {axes=(1,), keepdims=false} : f32[N]
  %2 = sum(%1) {axes=(0,), keepdims=false} : f32[]
  %3 = dim_size() {dim=N, dtype=f32} : f32[]
  %4 = divide(%2, %3) : f32[]
  %5 = constant() {value=f32[]{0.1}} : f32[]
  %6 = subtract(%fc.weight, %5) : f32[3]
  %7 = detach(%6) : f32[3]
  next %fc.weight = %7
  return %4
}"""
    )


def test_branches_print_as_blocks():
    graph = build(lambda x: [control.cond(reduction.sum(x) > 0, lambda a: a, lambda a: -a, x)], Spec((2,), float32))
    assert "true = graph(%x: f32[2]) {\n      return %x\n    },\n    false = graph" in print_graph(graph)


def both_ways(graph: Graph) -> Graph:
    """The graph after a round trip through text; texts must be equal with and without large constants."""
    elided = print_graph(graph)
    assert print_graph(parse_graph(elided, constants_of(graph))) == elided
    full = print_graph(graph, full=True)
    again = verify(parse_graph(full))
    assert print_graph(again, full=True) == full
    assert [s.name for s in again.state] == [s.name for s in graph.state]
    return again


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_any_graph_comes_back(graph: Graph):
    again = both_ways(graph)
    values = arguments(graph)
    for a, b in zip(interpret(graph, values), interpret(again, values), strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_comes_back():
    again = both_ways(training_step())
    (state,) = again.state
    assert state.name == "fc.weight" and state.written and state.input.spec == Spec((3,), float32)


ODD_NAMES = [("x", "x"), ("layer 1/x", "layer_1_x"), ("3", "%"), ("", ""), ("x_1", "x"), ("state", "return")]


@pytest.mark.parametrize("names", ODD_NAMES)
def test_odd_names_stay_apart(names):
    graph = build(lambda x, y: [x - y], Spec((2,), float32), Spec((2,), float32), names=names)
    again = both_ways(graph)
    assert interpret(again, [np.float32([3, 3]), np.float32([1, 2])])[0].tolist() == [2, 1]


CONSTANTS = [
    np.float32([0.1, -0.0, np.inf, -np.inf, 1e-45, 3.4028235e38]),
    np.float64([0.1, 5e-324, 1.7976931348623157e308]),
    np.array([0.1, 65504.0], float16.numpy),
    np.array([0.1, 3.0e38], bfloat16.numpy),
    np.array([2**64 - 1], np.uint64),
    np.array([[True, False]]),
    np.zeros((0, 3), np.float32),
    np.array(7, np.int8),
    np.arange(100, dtype=np.float32).reshape(4, 25),
    np.arange(40) % 3 == 0,
]


@pytest.mark.parametrize("array", CONSTANTS, ids=lambda a: f"{a.dtype.name}{a.shape}")
def test_constants_come_back_bit_for_bit(array):
    graph = build(lambda: [ops.constant(array)])
    (back,) = interpret(both_ways(graph), [])
    assert back.dtype == array.dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


@given(st.floats(allow_nan=True))
def test_float_attributes_are_exact(fill):
    graph = build(lambda: [ops.full((2,), fill, float64)])
    (back,) = interpret(both_ways(graph), [])
    np.testing.assert_array_equal(back, np.full(2, fill))
    assert np.isnan(fill) or np.signbit(back[0]) == np.signbit(fill)  # zeros keep their sign; a NaN has none


def test_symbolic_attributes_come_back():
    n, f32 = symbol("N"), symbol("f32")  # a symbol may be called like a dtype
    graph = build(
        lambda x, y: [movement.reshape(x, (n * 2 + 4,)), movement.broadcast_to(reduction.sum(y), (f32, (n + 3) // 2))],
        Spec((n + 2, 2), float32), Spec((f32,), float32),
    )  # fmt: skip
    assert both_ways(graph).outputs[1].shape == (f32, (n + 3) // 2)


def test_an_elided_constant_must_be_supplied():
    array = np.arange(100, dtype=np.float32)
    text = print_graph(build(lambda: [ops.constant(array)]))
    assert len(text) < 200
    with pytest.raises(GraphError, match="constants=constants_of"):
        parse_graph(text)
    (name,) = constants_of(parse_graph(print_graph(build(lambda: [ops.constant(array)]), full=True)))
    with pytest.raises(GraphError, match=r"int32\[100\] was given for f32\[100\]"):
        parse_graph(text, {name: array.astype(np.int32)})


HOSTILE = {
    "empty": ("", "expected graph"),
    "no return": ("graph f() {", "expected"),
    "junk": ("graph f(%x: f32[2]) { %0 = exp(%x) : f32[2] return %0 } trailing", "trailing"),
    "symbol soup": ("graph f() { $ }", r"cannot read '\$"),
    "unknown op": ("graph f(%x: f32[2]) { %0 = system(%x) : f32[2] return %0 }", "op 'system' is unknown"),
    "undefined": ("graph f() { %0 = exp(%y) : f32[2] return %0 }", "%y is used before it is defined"),
    "itself": ("graph f() { %0 = exp(%0) : f32[2] return %0 }", "%0 is used before"),
    "twice": ("graph f(%x: f32[2], %x: f32[2]) { return %x }", "%x is defined twice"),
    "wrong type": ("graph f(%x: f32[2]) { %0 = exp(%x) : f32[3] return %0 }", r"f32\[3\]; the op gives f32\[2\]"),
    "wrong count": ("graph f(%x: f32[2]) { %0, %1 = exp(%x) : f32[2], f32[2] return %0 }", "the op gives"),
    "wrong arity": ("graph f(%x: f32[2]) { %0 = sum(%x, %x) {axes=(0,), keepdims=true} : f32[1] return %0 }", "sum"),
    "wrong attrs": ("graph f(%x: f32[2]) { %0 = sum(%x) {axes=true, keepdims=9} : f32[1] return %0 }", "sum"),
    "axis": ("graph f(%x: f32[2]) { %0 = sum(%x) {axes=(7,), keepdims=true} : f32[1] return %0 }", "line 1"),
    "huge constant": ("graph f() { %0 = constant() {value=f32[9000000000]{}} : f32[9] return %0 }", "0 elements"),
    "huge base64": ("graph f() { %0 = constant() {value=f32[99999999999] base64:AA==} : f32[9] return %0 }", "1 bytes"),
    "bad base64": ("graph f() { %0 = constant() {value=f32[1] base64:=A=A} : f32[1] return %0 }", "base64"),
    "bad bool": ("graph f() { %0 = constant() {value=bool[1] base64:Bw==} : bool[1] return %0 }", "0 and 1"),
    "element": ("graph f() { %0 = constant() {value=u8[1]{300}} : u8[1] return %0 }", "does not fit"),
    "huge number": (f"graph f() {{ %0 = iota() {{size={'9' * 5000}, dtype=i64}} : i64[1] return }}", "5000 characters"),
    "negative": ("graph f(%x: f32[-2]) { return %x }", "negative size"),
    "dim": ("graph f(%x: f32[__import__('os')]) { return %x }", "cannot be read"),
    "long dim": (f"graph f(%x: f32[{'(' * 300}N{')' * 300}]) {{ return %x }}", "characters"),
    "zero division": ("graph f(%x: f32[3//0]) { return %x }", "line 1"),
    "dtype": ("graph f(%x: u128[3]) { return %x }", "dtype 'u128' is unknown"),
    "state next": ("graph f(%x: f32[2]) { next %x = %x return %x }", "is not a state"),
    "state type": ("graph f() { state %w: f32[2] %0 = sum(%w) {axes=(0,), keepdims=false} : f32[] next %w = %0 return}",
                   "its next value is"),
    "string": ('graph f() { state %w "\\q": f32[2] return %w }', "string"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_text_is_a_clear_error(name):
    text, message = HOSTILE[name]
    with pytest.raises(GraphError, match=message) as caught:
        parse_graph(text)
    assert "graph text, line" in str(caught.value)


def test_nesting_is_bounded():
    tuples = "(" * 5000
    with pytest.raises(GraphError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_graph(f"graph f() {{ %0 = full() {{shape={tuples}")
    graphs_ = "graph f() { %0 = cond() {true=" * 5000
    with pytest.raises(GraphError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_graph(graphs_)


SEED_TEXT = print_graph(
    build(
        lambda x, y: [
            control.scan(lambda c, row: (c * row, c + 0.5), reduction.sum(x, axis=0), y)[1],
            ops.constant(np.arange(20, dtype=np.int32)) + ops.iota(20, int32),
        ],
        Spec((2, 3), float32), Spec((4, 3), float32),
    ),
    full=True,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mutated_text_parses_or_is_refused(data):
    """Cutting, doubling and replacing pieces gives a graph or a GraphError: no other error, no hang."""
    text = SEED_TEXT
    for _ in range(data.draw(st.integers(1, 3))):
        at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 12))
        piece = data.draw(
            st.sampled_from(["", "%0", "{", "}", "(", ",", "-1", "f32[2]", "99999999999999", "true", "graph", "<N>"])
        )
        text = text[:at] + piece + text[at + length :]
    try:
        parse_graph(text)
    except GraphError as error:
        assert "line" in str(error)
