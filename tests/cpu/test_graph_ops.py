"""Every op of the table, every sample, every dtype it takes: the compiled program gives what the reference gives."""

from __future__ import annotations

import numpy as np
import pytest

import twofold  # noqa: F401 (fills the table)
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.lowering.rules import HOST, INLINE, NESTS
from twofold.base.dtypes import ALL, DType, float32, float64
from twofold.base.errors import TwofoldError
from twofold.ir import OPS, Builder, Spec, recording
from twofold.ir.op import Sample

# largest difference allowed, relative to 1 + |reference|
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
# sums in another order, in float32
REORDERED = frozenset(("sum", "prod", "matmul", "conv", "conv_input_grad", "conv_weight_grad", "avg_pool", "avg_pool_grad",
                       "max_pool_grad", "max_pool_pick", "scatter_add", "add_along_axis", "add_nd"))  # fmt: skip


def fill(sample: Sample, dtype: DType | None, rng: np.random.Generator) -> list[np.ndarray]:
    """The sample's inputs; shapes become random arrays of ``dtype``, float arrays become ``dtype`` too."""
    arrays = []
    for x in sample.inputs:
        if isinstance(x, tuple):
            values = rng.uniform(sample.low, sample.high, x)
            if dtype.kind == "b":
                values = values > (sample.low + sample.high) / 2
            elif dtype.kind == "u":
                values = np.abs(values * 3)
            elif dtype.kind == "i":
                values = values * 3
            arrays.append(np.asarray(values).astype(dtype.numpy))
        else:
            array = np.asarray(x)
            if dtype is None:
                arrays.append(array)
                continue
            arrays.append(array.astype(dtype.numpy) if array.dtype == np.float64 else array)
    return arrays


def build(op, arrays, attrs):
    """A graph of one node."""
    builder = Builder(op.name)
    from twofold.base.dtypes import as_dtype

    inputs = [builder.input(Spec(a.shape, as_dtype(a.dtype))) for a in arrays]
    with recording(builder):
        out = builder.append(op, inputs, dict(attrs))
    return builder.finish(out if op.multi else [out])


def close(got: np.ndarray, want: np.ndarray, scale: float = 1.0) -> None:
    """Equal, or within the tolerance of the dtype."""
    assert got.shape == want.shape and got.dtype == want.dtype
    limit = TOLERANCE.get(want.dtype.name)
    if limit is None:
        np.testing.assert_array_equal(got, want)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=limit * scale, atol=limit * scale)


def dtypes_of(op, number: int) -> tuple:
    """Every dtype for an op's first sample, float32 and float64 for the others; control flow takes its samples as they are."""
    if op.kind == "control":
        return (None,)
    return ALL if number == 0 else (float32, float64)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.kind != "boundary"])
def test_op_matches_reference(name):
    op, tried = OPS[name], 0
    for number, sample in enumerate(op.samples()):
        for dtype in dtypes_of(op, number):
            if dtype not in (None, float32) and not any(isinstance(x, tuple) for x in sample.inputs):
                continue  # fixed inputs: one dtype is enough
            arrays = fill(sample, dtype, np.random.default_rng(number))
            try:
                graph = build(op, arrays, sample.attrs)
                with np.errstate(all="ignore"):
                    want = op.ref(*(a.copy() for a in arrays), **sample.attrs)
            except (TwofoldError, ValueError, TypeError):
                continue  # the op does not take this dtype
            got = CpuProgram(graph)(arrays)
            for g, w in zip(got, want if op.multi else (want,)):
                close(g, np.asarray(w), 8.0 if name in REORDERED else 1.0)
            tried += 1
    assert tried


FLOATS = [
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.0, 88.5, -88.5, 100.25, 255.0, 65504.0, 6e-8, -6e-8,
    np.inf, -np.inf, np.nan,
]  # fmt: skip


def special(dtype: DType) -> np.ndarray:
    """Numbers at which rules have exceptions."""
    if dtype.kind == "b":
        return np.array([True, False])
    if dtype.is_floating:
        return np.array(FLOATS).astype(dtype.numpy)
    ends = np.iinfo(dtype.numpy)
    numbers = [0, 1, 2, 3, 7, 8, 31, 63, ends.max, ends.max - 1, ends.min, ends.min + 1, *([-1, -2, -7] * (ends.min < 0))]
    return np.array(numbers, dtype.numpy)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.kind == "elementwise" and name not in ("cast", "where")])
def test_special_values(name):
    """Infinities, NaN, zeros of either sign, divisors of 0, shifts beyond the width, the ends of what integers hold; and no
    elements, and one without dimensions."""
    op, tried = OPS[name], 0
    for dtype in ALL:
        values = special(dtype)
        pair = [a.ravel() for a in np.meshgrid(values, values, indexing="ij")]
        for shape in ((len(pair[0]),), (0,), (2, 0, 3), ()):
            arrays = [np.resize(a, shape) if 0 not in shape else np.empty(shape, a.dtype) for a in pair[: op.operands[0]]]
            with np.errstate(all="ignore"):
                try:
                    graph, want = build(op, arrays, {}), np.asarray(op.ref(*(a.copy() for a in arrays)))
                except (TwofoldError, ValueError, TypeError):
                    continue  # the op does not take this dtype
            (got,) = CpuProgram(graph)(arrays)
            close(got, want, 4.0)
            zeros = (want == 0) & (name != "relu")  # whose zeros are of either sign
            if dtype.is_floating and want.dtype == got.dtype == dtype.numpy:
                np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]), err_msg=dtype.name)
            tried += 1
    assert tried


def test_every_op_has_a_rule():
    rules = set(INLINE) | set(NESTS) | set(HOST)
    assert set(OPS) - rules == set()
    assert rules - set(OPS) == set()


def test_boundary_ops():
    x = np.linspace(-1, 1, 6, dtype=np.float32)
    custom = build(OPS["custom_vjp"], [x, x * 2], {"args": 1, "results": 1, "rule": None})
    np.testing.assert_array_equal(CpuProgram(custom)([x, x * 2])[0], x * 2)
    body = build(OPS["exp"], [x], {})
    kept = build(OPS["checkpoint"], [x], {"body": body})
    np.testing.assert_allclose(CpuProgram(kept)([x])[0], np.exp(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 5, 32, 32), (4096, 5), (16, 5, 200), (2, 5, 1, 3)])
def test_an_outlier_where_a_channel_begins_does_not_spoil_its_variance(shape):
    """Sums are about a mean of several values: about the first alone the error grew with the square of its distance."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[(0, slice(None), *[0] * (len(shape) - 2))] += 20.0
    x[:, 4] = 7.25  # what does not vary has exactly none
    builder = Builder("moments")
    ones, eps = np.ones(5, np.float32), 1e-5
    with recording(builder):
        inputs = [builder.input(Spec(a.shape, float32)) for a in (x, ones, ones)]
        graph = builder.finish(builder.append(OPS["batch_norm_train"], inputs, {"eps": eps}))
    _, mean, variance = CpuProgram(graph)([x, ones, ones])
    axes = (0, *range(2, len(shape)))
    np.testing.assert_allclose(variance, x.astype(np.float64).var(axes), rtol=3e-5)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axes), rtol=1e-5, atol=1e-6)
    assert variance[4] == 0.0 and mean[4] == 7.25
