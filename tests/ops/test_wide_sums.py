"""What adds up many 16-bit numbers does it in float32 and rounds once: on every backend, eagerly and compiled."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import twofold as tw
from twofold.nn import functional as F

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
RNG = np.random.default_rng(0)
LONG = RNG.uniform(0.5, 1.5, (2, 70_001))  # more elements than float16 has numbers for
SHORT = RNG.uniform(0.9, 1.15, (3, 40))
# name -> (ours, NumPy's in float64, operands)
CASES = {
    "mean": (tw.mean, np.mean, (LONG,)),
    "mean of a row": (lambda x: tw.mean(x, axis=1), lambda x: x.mean(1), (LONG,)),
    "var": (lambda x: tw.var(x, axis=1, correction=1), lambda x: x.var(1, ddof=1), (LONG,)),
    "std": (lambda x: tw.std(x, axis=1), lambda x: x.std(1), (SHORT * 7 + 40,)),
    "norm": (tw.linalg.vector_norm, np.linalg.norm, (LONG,)),
    "norm of large numbers": (tw.linalg.vector_norm, np.linalg.norm, (SHORT * 900,)),
    "3-norm": (lambda x: tw.linalg.vector_norm(x, ord=3), lambda x: np.linalg.norm(x.ravel(), 3), (SHORT * 50,)),
    "matrix norm": (tw.linalg.matrix_norm, np.linalg.norm, (SHORT * 900,)),
    "logsumexp": (lambda x: tw.logsumexp(x, axis=1), lambda x: np.log(np.exp(x).sum(1)), (LONG,)),
    "vecdot": (tw.vecdot, lambda x, y: (x * y).sum(-1), (SHORT, 1 / SHORT)),
    "cumulative_sum": (lambda x: tw.cumulative_sum(x, axis=1), lambda x: x.cumsum(1), (LONG[:, :3000],)),
    "cumulative_prod": (lambda x: tw.cumulative_prod(x, axis=1), lambda x: x.cumprod(1), (SHORT,)),
    "prod": (lambda x: tw.prod(x, axis=1), lambda x: x.prod(1), (SHORT,)),
    "mse": (F.mse_loss, lambda x, y: ((x - y) ** 2).mean(), (SHORT * 100, SHORT * 160)),
    "mse of squares beyond": (F.mse_loss, lambda x, y: ((x - y) ** 2).mean(), (np.arange(9) * 50.0, np.zeros(9))),
    "huber": (F.huber_loss, lambda x, y: (abs(x - y) - 0.5).mean(), (SHORT * 100, SHORT * 160)),
    "bce": (F.binary_cross_entropy_with_logits, lambda x, y: (np.log1p(np.exp(x)) - x * y).mean(), (SHORT, SHORT * 0.5)),
}  # fmt: skip


def once(exact: np.ndarray, dtype: type) -> np.ndarray:
    """Half a unit in the last place, and what float32 may be off before: a number near a midpoint goes either way."""
    eps = float(ml_dtypes.finfo(dtype).eps)
    return 0.5 * eps * np.abs(exact) * 1.02 + float(ml_dtypes.finfo(dtype).tiny)


@pytest.mark.parametrize("device", ["cpu", "reference", "xla:cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_one_rounding(name, dtype, device):
    if device.startswith("xla"):
        pytest.importorskip("jax")
    ours, numpys, operands = CASES[name]
    arrays = [x.astype(DTYPES[dtype]) for x in operands]
    exact = np.asarray(numpys(*(a.astype(np.float64) for a in arrays)))
    with tw.device(device):
        tensors = [tw.tensor(a) for a in arrays]
        for got in (ours(*tensors), tw.compile(ours)(*tensors)):
            assert got.dtype.name == dtype
            off = np.abs(got.numpy().astype(np.float64) - exact)
            assert (off <= once(exact, DTYPES[dtype])).all(), (got, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_long_sums(dtype):
    x = tw.tensor(LONG.astype(DTYPES[dtype]), requires_grad=True)
    tw.mean(x).backward()
    want = np.asarray(1 / LONG.size, DTYPES[dtype]).astype(np.float64)
    np.testing.assert_array_equal(x.grad.numpy().astype(np.float64), want)
    y = tw.tensor((SHORT * 900).astype(DTYPES[dtype]), requires_grad=True)
    tw.linalg.vector_norm(y).backward()
    exact = y.numpy().astype(np.float64)
    exact /= np.linalg.norm(exact)
    assert (np.abs(y.grad.numpy().astype(np.float64) - exact) <= 2 * once(exact, DTYPES[dtype])).all()


def test_a_wider_operand_makes_a_wide_result():
    x, y = tw.tensor(SHORT.astype(np.float16)), tw.tensor(SHORT.astype(np.float32) * 2)
    assert F.mse_loss(x, y).dtype == F.mse_loss(y, x).dtype == tw.float32
    assert tw.vecdot(x, y).dtype == tw.vecdot(y, x).dtype == tw.float32
    assert F.mse_loss(x, y.astype(tw.bfloat16)).dtype == tw.float32  # neither holds the other


def test_clipping_float16_gradients_whose_squares_overflow():
    p = tw.nn.Parameter(np.zeros(4, np.float16))
    p.grad = tw.full((4,), 1000.0, dtype=tw.float16)
    assert tw.nn.utils.clip_grad_norm_([p], 1.0).item() == 2000.0
    np.testing.assert_array_equal(p.grad.numpy(), np.float16(0.5))


@pytest.mark.parametrize("dtype", ["float32", np.float32, tw.float64, "int64", "float16"], ids=str)
@pytest.mark.parametrize("total", [tw.sum, tw.prod])
def test_a_dtype_that_is_asked_for_is_given(total, dtype):
    x = tw.tensor(np.array([300.0, 300.0], np.float16))  # their product is beyond float16
    got = total(x, dtype=dtype)
    assert got.dtype == tw.zeros((), dtype=dtype).dtype
    if str(got.dtype) != "twofold.float16":
        assert got.item() == (600 if total is tw.sum else 90_000)
