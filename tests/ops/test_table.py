"""Tests generated from the op table: each record's type rule, meaning and gradient agree on its samples."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import twofold as tw
from twofold.autodiff import check
from twofold.base.dtypes import ALL, FLOATS, as_dtype, float64
from twofold.base.errors import DtypeError, TwofoldError
from twofold.ir import OPS, Op, Sample, Spec, bind

# Their attributes are graphs or functions made for one call: tested with the functions that make them (tests/autodiff).
WITHOUT_SAMPLES = {"checkpoint", "custom_vjp"}
TABLE = [op for op in OPS.values() if op.name not in WITHOUT_SAMPLES]
PAIRS = [pytest.param(op, s, id=f"{op.name}-{i}") for op in TABLE for i, s in enumerate(op.samples())]


def fill(sample: Sample, dtype, seed: int = 0) -> list[np.ndarray]:
    """The sample's inputs: shapes become random arrays of ``dtype``, given float arrays are cast to it."""
    rng = np.random.default_rng(seed)
    arrays = []
    for x in sample.inputs:
        if isinstance(x, tuple):
            numbers = rng.uniform(sample.low, sample.high, x)
            x = (
                numbers > 0
                if dtype.kind == "b"
                else np.abs(numbers * 3)
                if dtype.kind == "u"
                else numbers * (3 if dtype.kind == "i" else 1)
            )
        x = np.asarray(x)
        arrays.append(
            x if x.dtype.kind in "biu" and not isinstance(sample.inputs[len(arrays)], tuple) else x.astype(dtype.numpy)
        )
    return arrays


def run(op: Op, arrays: list[np.ndarray], attrs: dict) -> tuple[tuple[Spec, ...], tuple[np.ndarray, ...]]:
    """What the type rule says, and what the meaning gives."""
    specs = op.specs(tuple(Spec(a.shape, as_dtype(a.dtype)) for a in arrays), attrs)
    out = op.ref(*(a.copy() for a in arrays), **attrs)
    return specs, out if op.multi else (out,)


def test_every_record_has_samples():
    assert {op.name for op in OPS.values() if not list(op.samples())} == WITHOUT_SAMPLES


@pytest.mark.parametrize("op, sample", PAIRS)
def test_the_type_rule_agrees_with_the_meaning(op, sample):
    accepted = 0
    for dtype in [float64] if op.kind == "control" else ALL:  # the graphs inside have dtypes of their own
        arrays = fill(sample, dtype)
        try:
            specs, results = run(op, arrays, sample.attrs)
        except DtypeError:
            continue
        accepted += 1
        for spec, result in zip(specs, results, strict=True):
            assert (spec.shape, spec.dtype) == (np.shape(result), as_dtype(result.dtype)), dtype
    assert accepted


def _differentiable():
    """Samples to differentiate; of convolutions and pools, whose samples are many and large, all but one are slow."""
    seen: set[str] = set()
    for pair in PAIRS:
        op, sample = pair.values
        if op.vjp is None or not sample.grad:
            continue
        slow = op.kind in ("conv", "pool") and op.name in seen
        seen.add(op.name)
        yield pytest.param(op, sample, id=pair.id, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("op, sample", list(_differentiable()))
def test_the_gradient_agrees_with_central_differences_to_second_order(op, sample):
    arrays = fill(sample, float64)
    if not any(a.dtype == np.float64 for a in arrays):
        pytest.skip("no floating input")
    check(lambda *xs: _as_list(bind(op, *(x.value for x in xs), **sample.attrs)), [tw.asarray(a) for a in arrays])


def _as_list(result):
    return (
        tuple(tw.Tensor(r) for r in result if r.dtype.is_floating) if isinstance(result, tuple) else tw.Tensor(result)
    )


NARROW = [p for p in PAIRS if p.values[0].kind in ("elementwise", "reduction", "matmul", "conv", "pool", "indexing")]


@pytest.mark.parametrize("dtype", [as_dtype("float16"), as_dtype("bfloat16")], ids=str)
@pytest.mark.parametrize("op, sample", NARROW)
def test_narrow_floats_are_computed_wide(op, sample, dtype):
    """The narrow result is the float64 result, rounded once or nearly so: no error piles up along a sum."""
    arrays = fill(sample, dtype)
    try:
        _, results = run(op, arrays, sample.attrs)
    except TwofoldError:
        pytest.skip(f"{op.name} does not take {dtype.name}")
    wide = [a.astype(np.float64) if as_dtype(a.dtype) is dtype else a for a in arrays]
    attrs = {k: float64 if v is dtype else v for k, v in sample.attrs.items()}
    _, expected = run(op, wide, attrs)
    eps = float((ml_dtypes.finfo if dtype.name == "bfloat16" else np.finfo)(dtype.numpy).eps)
    for got, want in zip(results, expected):
        if as_dtype(got.dtype) is dtype and op.name not in ("nextafter",):
            np.testing.assert_allclose(got.astype(np.float64), want, rtol=2 * eps, atol=eps * 1e-2)


def test_every_float_op_takes_every_float_dtype():
    for op in TABLE:
        for sample in op.samples():
            if not any(isinstance(x, tuple) for x in sample.inputs):
                continue
            taken = []
            for dtype in FLOATS:
                try:
                    run(op, fill(sample, dtype), sample.attrs)
                except DtypeError:
                    continue
                taken.append(dtype)
            assert len(taken) in (0, len(FLOATS)), (op, taken)
