"""Files from outside: each way to lie about sizes, names, nesting and places is refused with an error that says so."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import twofold as tw
from twofold.base.errors import FormatError, UnsafeFileError, UnsupportedOpError
from twofold.io.onnx.load.model import from_model
from twofold.io.onnx.load.reader import parse_model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def info(name, *shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(nodes, inputs=None, outputs=None, initializers=(), functions=(), opset=20):
    inputs = [info("x", "N", 3)] if inputs is None else inputs
    graph = helper.make_graph(nodes, "g", inputs, outputs or [info("y", None)], list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.twofold", 1), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions))


def one(op, *inputs, initializers=(), domain="", **attrs):
    return model(
        [helper.make_node(op, list(inputs), ["y"], name="n", domain=domain, **attrs)], initializers=initializers
    )


def raw(shape, data=b"", kind=FLOAT, name="w"):
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.raw_data = data
    return tensor


def const(name, *numbers):
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def nested(depth):
    """An If inside an If inside an If ..."""
    plain = graph = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "in", [], [info("z", None)])
    for i in range(depth):
        node = helper.make_node("If", ["p"], [f"z{i}"], then_branch=graph, else_branch=plain)
        graph = helper.make_graph([node], "in", [], [info(f"z{i}", None)])
    p = helper.make_tensor_value_info("p", TensorProto.BOOL, [])
    return model(list(graph.node), [info("x", 3), p], [info(f"z{depth - 1}", None)])


def laughs(levels, width):
    """Functions that call the next one many times: a small file that expands to width**levels nodes."""
    functions = []
    for i in range(levels):
        inner = ("f", f"l{i + 1}") if i + 1 < levels else ("", "Neg")
        chain = [f"v{k}" for k in range(width)]
        nodes = [helper.make_node(inner[1], [a], [b], domain=inner[0]) for a, b in zip(["x", *chain], [*chain, "y"])]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
        functions.append(helper.make_function("f", f"l{i}", ["x"], ["y"], nodes, opsets))
    return model([helper.make_node("l0", ["x"], ["y"], domain="f")], functions=functions)


def recursive():
    node = helper.make_node("r", ["x"], ["y"], domain="f")
    function = helper.make_function("f", "r", ["x"], ["y"], [node], [helper.make_opsetid("f", 1)])
    return model([helper.make_node("r", ["x"], ["y"], domain="f")], functions=[function])


HOSTILE = [
    ("size beyond the bytes", lambda: one("Add", "x", "w", initializers=[raw([2**40], b"1234")]), FormatError, "4 bytes; shape"),
    ("sizes that overflow", lambda: one("Add", "x", "w", initializers=[raw([2**32, 2**32], b"")]), FormatError, "needs 7378697"),
    ("negative size", lambda: one("Add", "x", "w", initializers=[raw([-1], b"1234")]), FormatError, "impossible shape"),
    ("empty but vast", lambda: one("Add", "x", "w", initializers=[raw([0, 2**62, 2**62])]), FormatError, "impossible shape"),
    ("no data", lambda: one("Add", "x", "w", initializers=[TensorProto(name="w", data_type=FLOAT, dims=[3])]), FormatError, "0 elem"),
    ("strings", lambda: one("Add", "x", "w", initializers=[TensorProto(name="w", data_type=8, dims=[0])]), UnsupportedOpError, "strings"),
    ("unknown dtype", lambda: one("Add", "x", "w", initializers=[raw([1], b"1", 99)]), UnsupportedOpError, "element type"),
    ("missing input", lambda: one("Add", "x", "nowhere"), FormatError, "'nowhere' is made by no earlier node"),
    ("cycle", lambda: model([helper.make_node("Neg", ["b"], ["y"]), helper.make_node("Neg", ["y"], ["b"])]), FormatError, "'b'"),
    ("made twice", lambda: model([helper.make_node("Neg", ["x"], ["y"])] * 2), FormatError, "two nodes make 'y'"),
    ("no such output", lambda: model([helper.make_node("Neg", ["x"], ["z"])]), FormatError, "output 'y' is made by no node"),
    ("too few inputs", lambda: one("Conv", "x"), FormatError, "'n' \\(Conv\\): input 1 is missing"),
    ("wrong rank", lambda: one("Conv", "x", "x"), FormatError, "'n' \\(Conv\\)"),
    ("missing attribute", lambda: one("Concat", "x", "x"), FormatError, "'axis' is missing"),
    ("reshape to nothing", lambda: one("Reshape", "x", "s", initializers=[const("s", 7, -3)]), FormatError, "negative|elements"),
    ("two holes", lambda: one("Reshape", "x", "s", initializers=[const("s", -1, -1)]), FormatError, "more than one -1"),
    ("axis out of range", lambda: one("Softmax", "x", axis=9), FormatError, "out of range"),
    ("petabyte", lambda: one("Expand", "x", "s", initializers=[const("s", 2**50, 1, 3)]), UnsafeFileError, "more than"),
    ("petabyte of zeros", lambda: one("ConstantOfShape", "s", initializers=[const("s", 2**31, 2**31)]), UnsafeFileError, "more than"),
    ("huge window", lambda: one("LRN", "x", size=2**31), FormatError, "size"),
    ("huge kernel", lambda: one("MaxPool", "x", kernel_shape=[2**40]), FormatError, "MaxPool"),
    ("nested too deep", lambda: nested(20), UnsafeFileError, "nested more than"),
    ("a billion laughs", lambda: laughs(9, 10), UnsafeFileError, "more than 1000000 nodes"),
    ("recursion", recursive, UnsafeFileError, "nested more than"),
    ("own op unknown", lambda: one("launch", "x", domain="ai.twofold"), UnsupportedOpError, "ai.twofold.launch"),
    ("own op misused", lambda: one("conv", "x", domain="ai.twofold"), FormatError, "got 1 operands; expected 2"),
    ("own attribute of nonsense", lambda: one("cumulative_prod", "x", axis="{[", domain="ai.twofold"), FormatError, "cannot be read"),
    ("own attribute too deep", lambda: one("cumulative_prod", "x", axis="[" * 10**5, domain="ai.twofold"), FormatError, "attribute"),
    ("operator set of the future", lambda: model([helper.make_node("Neg", ["x"], ["y"])], opset=99), FormatError, "operator set 99"),
    ("no graph", onnx.ModelProto, FormatError, "holds no graph"),
]  # fmt: skip


@pytest.mark.parametrize("make, error, message", [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_refused(make, error, message):
    with pytest.raises(error, match=message) as caught:
        from_model(parse_model(make().SerializeToString()))
    assert type(caught.value) is error


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"\xff" * 64, b"PK\x03\x04rest", b"\x08" * 4096], ids=range(5))
def test_other_bytes_are_no_onnx_file(data, tmp_path):
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(FormatError, match="x.onnx: not an ONNX file"):
        tw.load(tmp_path / "x.onnx")


def test_every_unsupported_operator_is_listed_with_its_nodes():
    nodes = [
        helper.make_node("NonMaxSuppression", ["x", "x"], ["a"], name="boxes"),
        helper.make_node("LSTM", ["x"], ["b"], name="memory"),
        helper.make_node("LSTM", ["x"], ["c"], name="more"),
        helper.make_node("Secret", ["x"], ["y"], name="own", domain="com.example"),
    ]
    with pytest.raises(UnsupportedOpError) as caught:
        from_model(model(nodes))
    for word in ("LSTM (nodes memory, more)", "NonMaxSuppression (node boxes)", "com.example.Secret (node own)"):
        assert word in str(caught.value)


def external(location, **more):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return one("Add", "x", "w", initializers=[tensor])


def test_external_data_is_read_only_when_asked_for(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"skip" + np.array([1, 2, 3], np.float32).tobytes())
    onnx.save(external("w.bin", offset=4), tmp_path / "m.onnx")
    with pytest.raises(UnsafeFileError, match="external_data=True"):
        tw.load(tmp_path / "m.onnx")
    f = tw.load(tmp_path / "m.onnx", external_data=True)
    assert f(np.zeros((1, 3), np.float32)).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "location, more",
    [("../secret.bin", {}), ("/etc/hostname", {}), ("link.bin", {}), ("", {}), ("none.bin", {}), ("inner/../../secret.bin", {}),
     ("short.bin", {}), ("short.bin", {"offset": -4}), ("short.bin", {"offset": 2**63}), ("short.bin", {"length": 10**15}),
     ("short.bin", {"offset": "x"})],
)  # fmt: skip
def test_external_data_stays_inside_the_folder_and_the_file(location, more, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(bytes(8))
    onnx.save(external(location, **more), folder / "m.onnx")
    with pytest.raises(FormatError, match="external data|offset"):
        tw.load(folder / "m.onnx", external_data=True)


@pytest.mark.parametrize("location", ["loop.bin", "round/w.bin", "x" * 5000, "a/" * 3000, "nul\0", "folder", "short.bin/w", "pipe"])
def test_external_data_that_no_file_can_hold(location, tmp_path):
    (tmp_path / "loop.bin").symlink_to(tmp_path / "loop.bin")
    (tmp_path / "round").symlink_to(tmp_path / "about")
    (tmp_path / "about").symlink_to(tmp_path / "round")
    (tmp_path / "short.bin").write_bytes(bytes(12))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    onnx.save(external(location), tmp_path / "m.onnx")
    with pytest.raises(FormatError, match=r"m\.onnx: .*external data .* (names no file|is not a file inside)") as error:
        tw.load(tmp_path / "m.onnx", external_data=True)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "meta",
    ["", "[]", "{}", '{"state": 3}', '{"state": [{"name": "a"}]}', '{"state": [{"name": "a", "input": "q", "output": "y"}]}',
     '{"state": [{"name": "a", "input": "w", "output": "q"}]}', '{"state": [{"name": "a", "input": "w", "output": "y"}]}', "[" * 10**5],
)  # fmt: skip
def test_metadata_is_checked(meta):
    proto = one("Add", "x", "w", initializers=[numpy_helper.from_array(np.zeros(3, np.float32), "w")])
    helper.set_model_props(proto, {"twofold": meta})
    with pytest.raises(FormatError, match="metadata|initializer|output|next value"):
        from_model(proto)


def test_operands_too_many_or_too_few_are_refused():
    """Type rules of elementwise ops broadcast any number of operands; NumPy would take a third as its output."""
    for op, inputs, domain in [("Sqrt", ["x", "x"], ""), ("Add", ["x", "x", "x"], ""), ("hypot", ["x"], "ai.twofold")]:
        with pytest.raises(FormatError, match="operands, not"):
            from_model(one(op, *inputs, domain=domain))
