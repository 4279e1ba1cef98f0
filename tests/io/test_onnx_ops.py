"""Every op of the table, from its record's samples: written to ONNX and read back it means the same; ONNX Runtime
agrees wherever standard operators suffice; and which ops need our own domain is a list, so a gap is a decision."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_tools import op_graph, operators, run, run_ort, sample_inputs

import twofold  # noqa: F401 (fills the op table)
from twofold.base.dtypes import as_dtype
from twofold.base.errors import DtypeError
from twofold.io.onnx.export.model import to_model
from twofold.io.onnx.load.model import from_model
from twofold.ir import OPS

# no standard operator, nor a sensible combination of a few
OWN_DOMAIN = {
    "argsort",
    "atan2",
    "avg_pool_grad",
    "conv_weight_grad",
    "copysign",
    "cumulative_prod",
    "max_pool_grad",
    "max_pool_pick",
    "nextafter",
    "pad",
    "random_bits",
    "rng_next",
    "scatter_add",
    "searchsorted",
    "signbit",
    "solve",
}  # fmt: skip  (pad: only with elements between neighbours)
INTEGER_OR_BOOL = {
    "bool": ("logical_", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"),
    "uint32": ("bitwise_",),
}


def _dtypes(name: str) -> list[str]:
    if OPS[name].kind == "control":
        return ["float64"]  # their samples hold graphs of that dtype
    special = [d for d, prefixes in INTEGER_OR_BOOL.items() if name.startswith(prefixes)]
    return special or ["float64", "float32"]


def _cases():
    for op in OPS.values():
        for number, sample in enumerate(op.samples()):
            for dtype in _dtypes(op.name):
                yield pytest.param(op, sample, dtype, id=f"{op.name}-{number}-{dtype}")


def _arrays(sample, dtype):
    """The sample's inputs with random numbers made bools or small unsigned integers where the op wants such."""
    arrays = sample_inputs(sample, dtype if dtype.startswith("float") else "float64")
    convert = {"bool": lambda x: x > 0, "uint32": lambda x: np.abs(x).astype(dtype)}.get(
        dtype, lambda x: x.astype(dtype)
    )
    return [np.asarray(convert(x)) if x.dtype.kind == "f" else x for x in arrays]


@pytest.mark.parametrize("op, sample, dtype", list(_cases()))
def test_round_trip(op, sample, dtype):
    arrays = _arrays(sample, dtype)
    graph = op_graph(op, arrays, sample.attrs)
    want = run(graph, arrays)
    for portable in (True, False):
        model = to_model(graph, [], portable=portable)
        onnx.checker.check_model(model)
        loaded = from_model(onnx.load_from_string(model.SerializeToString()))
        assert [v.spec for v in loaded.graph.outputs] == [v.spec for v in graph.outputs]
        for got, expected in zip(run(loaded.graph, arrays), want, strict=True):
            if portable:
                np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)
            else:
                np.testing.assert_array_equal(got, expected)
        own = [name for name in operators(model) if name.startswith("ai.twofold")]
        if portable:
            assert not own or (own == [f"ai.twofold.{op.name}"] and op.name in OWN_DOMAIN)
            if not own and (dtype != "float64" or op.kind == "control"):
                for got, expected in zip(run_ort(model, arrays), want, strict=True):
                    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OWN_DOMAIN))
def test_the_list_of_own_operators_holds_no_others(name):
    """Each op of the list really has a sample that is written in our domain."""
    found = []
    for sample in OPS[name].samples():
        for dtype in _dtypes(name):
            try:
                graph = op_graph(OPS[name], _arrays(sample, dtype), sample.attrs)
            except DtypeError:
                continue
            found += operators(to_model(graph, []))
            break
    assert f"ai.twofold.{name}" in found


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)
def test_constants_of_every_dtype_keep_their_bits(dtype):
    numbers = np.array([0, 1, 2, 7]).astype(as_dtype(dtype).numpy)
    graph = op_graph(OPS["constant"], [], {"value": numbers})
    loaded = from_model(to_model(graph, []))
    (got,) = run(loaded.graph, [])
    assert got.dtype == numbers.dtype
    assert got.tobytes() == numbers.tobytes()


def test_attributes_of_our_domain_are_kept_exactly():
    """Floats beyond float32, infinities, nested tuples, dtypes, bools: what a FLOAT attribute would lose."""
    from twofold.base.dims import symbol
    from twofold.io.onnx.common import read_attribute, write_attribute

    values = [0.1, float("inf"), -(2**63), 2**70, True, None, (), (1, 2), ((1, 0), (2, 1)), "text",
              as_dtype("bfloat16"),
              symbol("N") * 2 + 1, (symbol("N"), 3), (1.5, True)]  # fmt: skip
    for value in values:
        attribute = write_attribute("a", value)
        again = onnx.AttributeProto.FromString(attribute.SerializeToString())
        got = read_attribute(again)
        assert got == value and type(got) is type(value), value
