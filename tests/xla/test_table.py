"""Every op of the table on XLA against the reference: samples x dtypes, results and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import twofold as tw  # noqa: F401 - fills the op table
from twofold import autodiff
from twofold.backends import device
from twofold.backends.xla.table import TABLE
from twofold.base.dtypes import DType, as_dtype
from twofold.base.errors import TwofoldError
from twofold.ir import OPS, Builder, Graph, Op, Sample, Spec, bind, interpret, recording
from twofold.tensor.eager import Array

WHERE = device("xla:cpu")
DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "uint8", "bool")
# relative to the largest magnitude: one rounding for exact ops, a few for series and sums
SOME = ("float32", "bfloat16", "int32", "bool")
FEW = {"conv": SOME[:2], "pool": SOME[:2], "indexing": SOME, "movement": SOME, "reduction": SOME}  # slow to compile
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def filled(sample: Sample, dtype: DType, seed: int = 0) -> list[np.ndarray]:
    """The sample's inputs; shapes become numbers of ``dtype``, floating arrays are cast to it."""
    rng = np.random.default_rng(seed)
    out = []
    for given in sample.inputs:
        if isinstance(given, tuple):
            numbers = rng.uniform(sample.low, sample.high, given)
            given = numbers > 0 if dtype.kind == "b" else np.abs(numbers * 3) if dtype.kind == "u" else numbers
            out.append(np.asarray(given).astype(dtype.numpy))
        else:
            out.append(given.astype(dtype.numpy) if given.dtype.kind == "f" else given)
    return out


def on(where: Any, arrays: list[np.ndarray]) -> list[Array]:
    where = device(where)
    return [Array(Spec(a.shape, as_dtype(a.dtype)), where.backend.put(a, where), where) for a in arrays]


def results(op: Op, inputs: list[np.ndarray], attrs: dict[str, Any], where: Any) -> list[np.ndarray]:
    out = bind(op, *on(where, inputs), **attrs, device=device(where))
    return [np.asarray(o.numpy()) for o in (out if op.multi else (out,))]


def agree(got: np.ndarray, expected: np.ndarray, factor: float = 1.0) -> None:
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    tolerance = TOLERANCE.get(expected.dtype.name)
    if tolerance is None:
        np.testing.assert_array_equal(got, expected)
        return
    a, b = got.astype(np.float64), expected.astype(np.float64)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=1e-30)
    np.testing.assert_allclose(a, b, rtol=0, atol=factor * tolerance * scale)


def allowed(op: Op, sample: Sample, dtype: DType) -> bool:
    """Whether the reference takes the sample in this dtype, by its type rule."""
    if dtype is not as_dtype("float32") and not any(isinstance(x, tuple) or x.dtype.kind == "f" for x in sample.inputs):
        return False
    try:
        op.specs(tuple(Spec(a.shape, as_dtype(a.dtype)) for a in filled(sample, dtype)), sample.attrs)
    except TwofoldError:
        return False
    return True


def test_the_table_has_a_row_for_every_op_and_no_other() -> None:
    assert set(TABLE) == set(OPS)


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_op_equals_reference(op: Op) -> None:
    """All samples of the op in all dtypes that its type rule takes, as one compiled program."""
    builder, arguments, expected = Builder(op.name), [], []
    outputs: list[Any] = []
    for sample in op.samples():
        for dtype in (d for d in FEW.get(op.kind, DTYPES) if allowed(op, sample, as_dtype(d))):
            inputs = filled(sample, as_dtype(dtype))
            values = [builder.input(a.spec) for a in on("reference", inputs)]
            with recording(builder):
                out = bind(op, *values, **sample.attrs)
            outputs += out if op.multi else [out]
            arguments += inputs
            expected += results(op, inputs, sample.attrs, "reference")
    graph = builder.finish(outputs)
    program = WHERE.backend.compile(graph, WHERE)
    got = program([WHERE.backend.put(a, WHERE) for a in arguments])
    for value, buffer, want in zip(graph.outputs, got, expected, strict=True):
        try:
            agree(WHERE.backend.get(buffer), want)
        except AssertionError as error:
            error.add_note(repr(value.producer))
            raise


SAMPLED = [op for op in OPS.values() if any(True for _ in op.samples())]
FIRST_OF_KIND = {op.kind: op for op in reversed(SAMPLED)}


@pytest.mark.parametrize("op", FIRST_OF_KIND.values(), ids=str)
def test_eager_op_equals_reference(op: Op) -> None:
    sample = next(iter(op.samples()))
    inputs = filled(sample, next(as_dtype(d) for d in DTYPES if allowed(op, sample, as_dtype(d))))
    expected = results(op, inputs, sample.attrs, "reference")
    for got, want in zip(results(op, inputs, sample.attrs, WHERE), expected, strict=True):
        agree(got, want)


def gradient_graph(kind: str) -> tuple[Graph, list[np.ndarray]]:
    """Gradients at the first differentiable sample of every op of a kind, with random cotangents, as one graph."""
    builder, arguments, outputs = Builder(kind), [], []
    for op in (o for o in OPS.values() if o.kind == kind and o.vjp is not None):
        sample = next((s for s in op.samples() if s.grad), None)
        dtype = sample and next((d for d in ("float32", "float64") if allowed(op, sample, as_dtype(d))), None)
        if sample is None or dtype is None:
            continue
        inputs = filled(sample, as_dtype(dtype))
        values = [builder.input(a.spec) for a in on("reference", inputs)]
        xs = [v for v in values if v.dtype.is_floating]
        for x in xs:
            x.requires_grad = True
        with recording(builder):
            out = bind(op, *values, **sample.attrs)
            ys = [y for y in (out if op.multi else (out,)) if y.dtype.is_floating]
            seeds = [builder.input(y.spec) for y in ys]
            outputs += [g for g in autodiff.gradients(ys, xs, seeds) if g is not None]
        arguments += [*inputs, *(np.random.default_rng(5).uniform(0.5, 1.5, y.shape).astype(y.dtype.numpy) for y in ys)]
    return builder.finish(outputs), arguments


DIFFERENTIABLE = sorted({op.kind for op in SAMPLED if op.vjp is not None})


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_gradients_equal_the_references(kind: str) -> None:
    graph, arguments = gradient_graph(kind)
    assert arguments and graph.outputs
    expected = interpret(graph, arguments)
    got = WHERE.backend.compile(graph, WHERE)([WHERE.backend.put(a, WHERE) for a in arguments])
    for value, buffer, want in zip(graph.outputs, got, expected, strict=True):
        try:
            agree(WHERE.backend.get(buffer), np.asarray(want), factor=5)
        except AssertionError as error:
            error.add_note(repr(value.producer))
            raise


BIG = {"float16": 2.0**12, "bfloat16": 2.0**9}  # where adding 1 to it in 16 bits changes nothing


@pytest.mark.parametrize("where", ["reference", "cpu", "xla:cpu"])
@pytest.mark.parametrize("name", BIG)
def test_running_sums_and_products_of_16_bits_are_gathered_in_float32(name: str, where: str) -> None:
    """On every backend. float32 holds each of these results exactly, so each is the exact one rounded once; in 16 bits
    they come out otherwise."""
    dtype = as_dtype(name).numpy
    cases = {"cumulative_sum": (np.add, [BIG[name], *[1.0] * 99]), "cumulative_prod": (np.multiply, [1.328125, 1.890625, 1.265625])}
    for op, (step, numbers) in cases.items():
        x = np.array([numbers]).astype(dtype)
        want = step.accumulate(x.astype(np.float64), axis=1).astype(dtype)
        assert (want != step.accumulate(x, axis=1, dtype=dtype)).any()
        np.testing.assert_array_equal(results(OPS[op], [x], {"axis": 1}, where)[0], want)
