"""Every row of the simplify table: it fires, it gives the expected node, and the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest

from graph_strategies import arguments
from twofold.ir import interpret
from twofold.ir.text import parse_graph
from twofold.ir.verify import verify
from twofold.passes.dead_code import dead_code
from twofold.passes.simplify import RULES, simplify

ONE, ZERO, TWO = (f"%c = constant() {{value=f32[]{{{n}}}}} : f32[]" for n in ("1.0", "0.0", "2.0"))
MINUS = "%c = constant() {value=f32[]{-1.0}} : f32[]"
ONES = "%c = full() {shape=(2, 1, 3), fill=1.0, dtype=f32} : f32[2,1,3]"
NEGATED = "%n = negative(%y) : f32[2,1,3]"
T = "f32[2,1,3]"
BRANCHES = f"{{true = graph(%a: {T}) {{ %0 = exp(%a) : {T} return %0 }}, false = graph(%a: {T}) {{ return %a }}}}"

# row: [(nodes whose last is %r, ops left after dead code)]
CASES = {
    "identity": [(f"%r = identity(%x) : {T}", ""), (f"%r = detach(%x) : {T}", "")],
    "custom_vjp": [
        (f'%e = exp(%x) : {T}  %r = custom_vjp(%x, %e, %y) {{args=1, results=1, rule="back"}} : {T}', "exp"),
    ],
    "checkpoint": [(f"%r = checkpoint(%x) {{body=graph(%a: {T}) {{ %0 = exp(%a) : {T} return %0 }}}} : {T}", "exp")],
    "known branch": [
        (f"%c = constant() {{value=bool[]{{{p}}}}} : bool[]  %r = cond(%c, %x) {BRANCHES} : {T}", left)
        for p, left in (("true", "exp"), ("false", ""))
    ],
    "x + 0": [(f"{ZERO} %r = add(%x, %c) : {T}", ""), (f"{ZERO} %r = add(%c, %x) : {T}", "")],
    "x + -y": [(f"{NEGATED} %r = add(%x, %n) : {T}", "subtract")],
    "x - 0": [
        (f"{ZERO} %r = subtract(%x, %c) : {T}", ""),
        (f"{ZERO} %r = subtract(%c, %x) : {T}", "constant subtract"),
    ],
    "x - -y": [(f"{NEGATED} %r = subtract(%x, %n) : {T}", "add")],
    "x * 1": [
        (f"{ONE} %r = multiply(%x, %c) : {T}", ""),
        (f"{ONES} %r = multiply(%v, %c) : {T}", "broadcast_to"),
        (f"{TWO} %r = multiply(%x, %c) : {T}", "constant multiply"),
    ],
    "x * -1": [(f"{MINUS} %r = multiply(%c, %x) : {T}", "negative")],
    "x / 1": [(f"{ONE} %r = divide(%x, %c) : {T}", ""), (f"{ONE} %r = divide(%c, %x) : {T}", "constant divide")],
    "x ** n": [
        (f"{TWO} %r = pow(%x, %c) : {T}", "square"),
        (f"{ONE} %r = pow(%x, %c) : {T}", ""),
        (f"{ZERO} %r = pow(%x, %c) : {T}", "full"),
        (f"{MINUS} %r = pow(%x, %c) : {T}", "reciprocal"),
    ],
    "f(f(x)) = x": [
        (f"%n = negative(%x) : {T}  %r = negative(%n) : {T}", ""),
        (f"%n = flip(%x) {{axes=(2,)}} : {T}  %r = flip(%n) {{axes=(2,)}} : {T}", ""),
        (f"%n = flip(%x) {{axes=(2,)}} : {T}  %r = flip(%n) {{axes=(0,)}} : {T}", "flip flip"),
    ],
    "f(f(x)) = f(x)": [(f"%n = relu(%x) : {T}  %r = relu(%n) : {T}", "relu")],
    "where known": [
        (f"%c = full() {{shape=(), fill=true, dtype=bool}} : bool[]  %r = where(%c, %x, %y) : {T}", ""),
        (f"%c = full() {{shape=(), fill=false, dtype=bool}} : bool[]  %r = where(%c, %x, %v) : {T}", "broadcast_to"),
        (f"%r = where(%p, %x, %x) : {T}", ""),
    ],
    "no change": [
        (f"%r = cast(%x) {{dtype=f32}} : {T}", ""),
        (f"%r = reshape(%x) {{shape=(2, 1, 3)}} : {T}", ""),
        (f"%r = broadcast_to(%x) {{shape=(2, 1, 3)}} : {T}", ""),
    ],
    "cast back": [
        (f"%n = cast(%x) {{dtype=f64}} : f64[2,1,3]  %r = cast(%n) {{dtype=f32}} : {T}", ""),
        (f"%n = cast(%x) {{dtype=f16}} : f16[2,1,3]  %r = cast(%n) {{dtype=f32}} : {T}", "cast cast"),
        (f"%n = cast(%x) {{dtype=i64}} : i64[2,1,3]  %r = cast(%n) {{dtype=f32}} : {T}", "cast cast"),
    ],
    "twice": [
        ("%n = reshape(%x) {shape=(6,)} : f32[6]  %r = reshape(%n) {shape=(3, 2)} : f32[3,2]", "reshape"),
        (f"%n = broadcast_to(%v) {{shape=(1, 3)}} : f32[1,3]  %r = broadcast_to(%n) {{shape=(2, 1, 3)}} : {T}",
         "broadcast_to"),
    ],
    "permute twice": [
        (f"%n = permute_dims(%x) {{axes=(1, 2, 0)}} : f32[1,3,2]  %r = permute_dims(%n) {{axes=(2, 0, 1)}} : {T}", ""),
        ("%n = permute_dims(%x) {axes=(1, 2, 0)} : f32[1,3,2]  %r = permute_dims(%n) {axes=(1, 2, 0)} : f32[3,2,1]",
         "permute_dims"),
    ],
    "product transposed": [
        ("%a = permute_dims(%x) {axes=(0, 2, 1)} : f32[2,3,1]  %m = matmul(%a, %y) : f32[2,3,3]  "
         "%r = permute_dims(%m) {axes=(0, 2, 1)} : f32[2,3,3]", "permute_dims permute_dims permute_dims matmul"),
        ("%a = permute_dims(%x) {axes=(0, 2, 1)} : f32[2,3,1]  %m = matmul(%a, %y) : f32[2,3,3]  "
         "%t = permute_dims(%m) {axes=(0, 2, 1)} : f32[2,3,3]  %r = add(%t, %m) : f32[2,3,3]",
         "permute_dims matmul permute_dims add"),
        ("%a = permute_dims(%x) {axes=(0, 2, 1)} : f32[2,3,1]  %m = matmul(%a, %y) : f32[2,3,3]  "
         "%c = cast(%m) {dtype=f64} : f64[2,3,3]  %r = permute_dims(%c) {axes=(0, 2, 1)} : f64[2,3,3]",
         "permute_dims permute_dims permute_dims matmul cast"),
        ("%a = permute_dims(%x) {axes=(0, 2, 1)} : f32[2,3,1]  %m = matmul(%a, %y) : f32[2,3,3]  "
         "%c = cast(%m) {dtype=f64} : f64[2,3,3]  %t = permute_dims(%c) {axes=(0, 2, 1)} : f64[2,3,3]  %b = cast(%m) {dtype=bool} : bool[2,3,3]  "
         "%r = where(%b, %t, %c) : f64[2,3,3]", "permute_dims matmul cast permute_dims cast where"),
    ],
    "permute nothing": [(f"%r = permute_dims(%x) {{axes=(0, 1, 2)}} : {T}", "")],
    "slice of all": [
        (f"%r = slice(%x) {{starts=(0, 0, 0), stops=(2, 1, 3), steps=(1, 1, 1)}} : {T}", ""),
        ("%r = slice(%x) {starts=(0, 0, 0), stops=(2, 1, 3), steps=(1, 1, 2)} : f32[2,1,2]", "slice"),
        ("%r = slice(%x) {starts=(0, 0, 1), stops=(2, 1, 3), steps=(1, 1, 1)} : f32[2,1,2]", "slice"),
    ],
    "pad by nothing": [
        (f"%r = pad(%x) {{widths=((0, 0), (0, 0), (0, 0)), interior=(0, 0, 0), fill=1.0}} : {T}", ""),
        ("%r = pad(%x) {widths=((0, 0), (0, 0), (0, 0)), interior=(0, 0, 1), fill=1.0} : f32[2,1,5]", "pad"),
    ],
    "flip of ones": [(f"%r = flip(%x) {{axes=(1,)}} : {T}", ""), (f"%r = flip(%x) {{axes=(1, 2)}} : {T}", "flip")],
    "concat of one": [(f"%r = concat(%x) {{axis=1}} : {T}", "")],
    "reduce ones": [
        ("%r = sum(%x) {axes=(1,), keepdims=false} : f32[2,3]", "reshape"),
        (f"%r = max(%x) {{axes=(1,), keepdims=true}} : {T}", "reshape"),
        ("%r = prod(%x) {axes=(1, 2), keepdims=false} : f32[2]", "prod"),
    ],
    "moved fill": [
        (f"{ONES} %r = reshape(%c) {{shape=(3, 2)}} : f32[3,2]", "full"),
        (f"{ONES} %r = cast(%c) {{dtype=i32}} : i32[2,1,3]", "full"),
    ],
}  # fmt: skip


def test_every_row_has_cases():
    assert set(CASES) == {row.name for row in RULES}


@pytest.mark.parametrize(("row", "nodes", "left"), [(row, *case) for row, cases in CASES.items() for case in cases])
def test_row(row: str, nodes: str, left: str):
    kind = nodes[nodes.rindex(": ") + 2 :]
    text = f"graph f(%x: {T}, %y: {T}, %v: f32[3], %p: bool[2,1,3]) {{ {nodes}  return %r }}"
    graph = verify(parse_graph(text))
    assert str(graph.outputs[0].spec) == kind
    after = verify(dead_code(simplify(graph)))
    assert " ".join(node.op.name for node in after.nodes) == left
    values = arguments(graph)
    (expected,), (found,) = interpret(graph, values), interpret(after, values)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_max_ulp(found, expected, 1) if found.dtype.kind == "f" else np.testing.assert_array_equal(
        found, expected
    )
