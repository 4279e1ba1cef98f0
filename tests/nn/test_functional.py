"""Activations, losses and normalisations against PyTorch (values and gradients), and by numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

import twofold as tw
from twofold.base.errors import ArgumentError, DtypeError, IndexRangeError, ShapeError

F = tw.nn.functional
RNG = np.random.default_rng(2)
LABELS, DENSE = RNG.integers(0, 5, 6), RNG.integers(0, 5, (6, 3))
SOFT = RNG.dirichlet(np.ones(5), 6)
MEAN, VAR = RNG.normal(size=3), RNG.uniform(0.5, 2, 3)

# name, shapes of the inputs, further arguments (arrays become tensors of either side), keyword arguments
ROWS = [
    *((name, [(5, 7)], (), {}) for name in (
        "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh",
        "hardsigmoid", "hardswish", "softplus", "softsign", "logsigmoid",
    )),
    ("gelu", [(5, 7)], (), {"approximate": "tanh"}),
    ("prelu", [(2, 3, 4), (3,)], (), {}),
    ("softmax", [(5, 7)], (), {"dim": 1}),
    ("log_softmax", [(2, 5, 3)], (), {"dim": 1}),
    *(("cross_entropy", [(6, 5)], (LABELS,), {"reduction": r, "label_smoothing": s})
      for r in ("mean", "sum", "none") for s in (0.0, 0.1)),
    ("cross_entropy", [(6, 5, 3)], (DENSE,), {"label_smoothing": 0.1}),
    ("cross_entropy", [(6, 5)], (SOFT,), {"label_smoothing": 0.1}),
    ("nll_loss", [(6, 5)], (LABELS,), {}),
    ("binary_cross_entropy_with_logits", [(6, 5)], (SOFT,), {}),
    *((name, [(4, 3), (4, 3)], (), {"reduction": r})
      for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss") for r in ("mean", "sum", "none")),
    ("layer_norm", [(3, 4, 5)], ((4, 5),), {}),
    ("group_norm", [(3, 4, 5)], (2,), {}),
    ("batch_norm", [(4, 3, 5)], (MEAN, VAR), {}),
    ("batch_norm", [(4, 3, 5, 2)], (None, None), {"training": True}),
    *(("local_response_norm", [(2, 7, 3, 3)], (size,), {"alpha": 0.3, "k": 2.0}) for size in (1, 2, 5)),
    ("linear", [(2, 3, 4), (5, 4), (5,)], (), {}),
]  # fmt: skip


@pytest.mark.parametrize("name, shapes, further, options", ROWS)
def test_values_and_gradients_are_pytorchs(name, shapes, further, options):
    torch = pytest.importorskip("torch")
    arrays = [RNG.normal(size=s) for s in shapes]
    ours, theirs = (
        [tw.tensor(a, requires_grad=True) for a in arrays],
        [torch.tensor(a, requires_grad=True) for a in arrays],
    )
    each = lambda make: [make(a) if isinstance(a, np.ndarray) else a for a in further]
    y = getattr(F, name)(*ours, *each(tw.tensor), **options)
    expected = getattr(torch.nn.functional, name)(*theirs, *each(torch.tensor), **options)
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=1e-7)
    g = RNG.normal(size=y.shape)
    y.backward(g)
    expected.backward(torch.tensor(g))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-7)


# ---- worked out by hand, so that the checks stand without PyTorch ----------------------------------------------------


def test_the_alexnet_papers_normalisation():
    """Five channels of ones, n=5, alpha=1e-4 (not divided by n), beta=0.75, k=2: 1 / 2.0005**0.75 in the middle."""
    y = F.local_response_norm(tw.ones((1, 5, 1, 1), dtype=tw.float64), 5, alpha=5e-4, beta=0.75, k=2.0).numpy()[
        0, :, 0, 0
    ]
    assert round(float(y[2]), 6) == 0.594492
    np.testing.assert_allclose(y, [(2 + 1e-4 * n) ** -0.75 for n in (3, 4, 5, 4, 3)], rtol=1e-12)


def test_caffes_normalisation_is_the_default():
    y = F.local_response_norm(tw.ones((1, 5, 1, 1), dtype=tw.float64), 5).numpy()
    np.testing.assert_allclose(y[0, 2, 0, 0], (1 + 1e-4) ** -0.75, rtol=1e-12)


def test_cross_entropy_by_hand():
    logits = tw.tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0]], dtype=tw.float64, requires_grad=True)
    loss = F.cross_entropy(logits, tw.tensor([1, 0]))
    assert math.isclose(loss.item(), (math.log(4 / 3) + math.log(2)) / 2, rel_tol=1e-12)
    loss.backward()
    np.testing.assert_allclose(logits.grad.numpy(), [[0.125, -0.125], [-0.25, 0.25]], atol=1e-12)


def test_huge_logits_do_not_overflow():
    logits = tw.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = F.cross_entropy(logits, tw.tensor([2]))
    assert loss.item() == 2e4
    loss.backward()
    assert logits.grad.tolist() == [[1.0, 0.0, -1.0]]
    assert F.softmax(logits).tolist() == [[1.0, 0.0, 0.0]]
    assert F.softplus(tw.tensor([-200.0, 200.0])).tolist() == [0.0, 200.0]


def test_half_precision_losses_are_computed_in_float32():
    logits = RNG.normal(size=(8, 1000))
    loss = F.cross_entropy(tw.tensor(logits, dtype="float16"), tw.tensor(np.arange(8)))
    assert loss.dtype == "float16"
    exact = F.cross_entropy(tw.tensor(logits.astype(np.float16).astype(np.float64)), tw.tensor(np.arange(8))).item()
    assert abs(loss.item() - exact) < 4e-3  # one unit in the last place of float16


def test_batch_norm_by_hand():
    """Mean 2 and biased variance 5 normalise; running statistics take a tenth of 2 and of the unbiased 20/3."""
    x = tw.tensor(np.array([-1.0, 1.0, 3.0, 5.0]).reshape(4, 1))
    mean, var = tw.Variable(np.zeros(1)), tw.Variable(np.ones(1))
    y = F.batch_norm(x, mean, var, training=True, eps=0.0)
    np.testing.assert_allclose(y.numpy()[:, 0], np.array([-3, -1, 1, 3]) / math.sqrt(5), rtol=1e-12)
    np.testing.assert_allclose([mean.item(), var.item()], [0.2, 0.9 + 2 / 3], rtol=1e-12)


def test_batch_norm_variance_is_two_pass():
    """A mean a thousand times the deviation: E[x^2] - E[x]^2 in float32 would be noise."""
    x = (1000 + RNG.normal(size=(4096, 1))).astype(np.float32)
    y = F.batch_norm(tw.tensor(x), None, None, training=True).numpy()
    exact = (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    np.testing.assert_allclose(y, exact, atol=2e-3)


def test_dropout():
    x = tw.tensor(np.ones((100, 100), np.float32), requires_grad=True)
    tw.random.seed(0)
    y = F.dropout(x, 0.25)
    kept = y.numpy() != 0
    assert abs(kept.mean() - 0.75) < 0.02
    np.testing.assert_allclose(y.numpy()[kept], 1 / 0.75, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    assert F.dropout(x, 0.25, training=False) is x
    assert not F.dropout(x, 1.0).numpy().any()


def test_dropout2d_drops_whole_maps():
    y = F.dropout2d(tw.ones((8, 16, 3, 3)), 0.5).numpy()
    assert {float(v) for v in y.reshape(128, 9).sum(1)} == {0.0, 18.0}


# ---- mistakes --------------------------------------------------------------------------------------------------------
MISTAKES = [
    ("mse_loss", ((4, 1), (4,)), ShapeError, ["(4, 1)", "(4,)", "reshape or squeeze"]),
    ("l1_loss", ((4, 1), (4, 3)), ShapeError, ["(4, 1)", "(4, 3)"]),
    ("cross_entropy", ((3, 4), np.array([0, 4, 1])), IndexRangeError, ["label 4", "sample 1", "0 <= label < 4"]),
    ("cross_entropy", ((3, 4), np.array([0, 1, -1])), IndexRangeError, ["label -1", "sample 2"]),
    ("cross_entropy", ((2, 4, 3), np.array([[0, 1, 2], [3, 9, 0]])), IndexRangeError, ["label 9", "(1, 1)"]),
    ("cross_entropy", ((3, 4), np.array([[0], [1], [2]])), ShapeError, ["(3, 1)", "expected (3,)"]),
    ("cross_entropy", ((3, 4), np.array([0.0, 1.0, 2.0])), DtypeError, ["float64", "integers"]),
    ("nll_loss", ((3, 4), np.array([0, 7, 1])), IndexRangeError, ["label 7", "sample 1"]),
    ("linear", ((2, 5), (3, 4)), ShapeError, ["5 features", "expects 4", "in_features"]),
    ("batch_norm", ((2, 5, 3), (4,), (4,)), ShapeError, ["5 channels", "(4,)", "num_features"]),
    ("layer_norm", ((2, 5), 4), ShapeError, ["(2, 5)", "(4,)"]),
    ("group_norm", ((2, 5), 2), ArgumentError, ["5 channels", "2 groups"]),
    ("dropout", ((2, 5), 1.5), ArgumentError, ["p=1.5", "[0, 1]"]),
    ("local_response_norm", ((2, 5, 1, 1), 0), ArgumentError, ["size=0"]),
    ("gelu", ((2,), "erf"), ArgumentError, ["'erf'", "'tanh'"]),
]


@pytest.mark.parametrize("name, arguments, error, words", MISTAKES)
def test_errors_teach(name, arguments, error, words):
    make = lambda a: tw.zeros(a) if isinstance(a, tuple) else tw.tensor(a) if isinstance(a, np.ndarray) else a
    with pytest.raises(error) as caught:
        getattr(F, name)(*map(make, arguments))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("label", [4, -1])
def test_a_program_refuses_labels_out_of_range(label):
    compiled = tw.compile(lambda x, y: F.cross_entropy(x, y))
    assert math.isclose(compiled(tw.zeros((3, 4)), np.array([0, 1, 3])).item(), math.log(4), rel_tol=1e-6)
    with pytest.raises(IndexRangeError):
        compiled(tw.zeros((3, 4)), np.array([0, label, 3]))


def test_training_batch_norm_needs_two_values():
    with pytest.raises(ShapeError, match="one value per channel"):
        F.batch_norm(tw.zeros((1, 3)), None, None, training=True)
    with pytest.raises(ArgumentError, match="running_mean"):
        F.batch_norm(tw.zeros((2, 3)), None, None)
