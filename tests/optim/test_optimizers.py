"""Optimizers over ten steps with a change of the learning rate, eager and compiled: against PyTorch, and against the
update rules written out in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn, optim
from twofold.base.errors import ArgumentError, WeightsError

RNG = np.random.default_rng(4)
START = RNG.normal(size=(3, 4)), RNG.normal(size=3)
XS, YS = RNG.normal(size=(10, 5, 4)), RNG.normal(size=(10, 5, 3))

ROWS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
]
MODES = pytest.mark.parametrize("mode", ["eager", "compiled"])


def train(name, options, dtype="float64", mode="eager", steps=10):
    """Ten steps of a small regression; the learning rate falls to a tenth after five. Parameters and optimizer."""
    w, b = (nn.Parameter(a.astype(dtype)) for a in START)
    optimizer = getattr(optim, name)([w, b], **options)

    def step(x, y):
        loss = nn.functional.mse_loss(nn.functional.linear(x, w, b).tanh(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    run = tw.compile(step) if mode == "compiled" else step
    for i in range(steps):
        run(tw.tensor(XS[i].astype(dtype)), tw.tensor(YS[i].astype(dtype)))
        if i == 4:
            optimizer.lr = optimizer.lr / 10
    if mode == "compiled":
        assert run.retraces == []  # a new learning rate needs no new trace
    return [w.numpy(), b.numpy()], optimizer


def gradients(w, b, x, y):
    """Of the mean squared error, by hand."""
    h = np.tanh(x @ w.T + b)
    d = 2 * (h - y) / y.size * (1 - h * h)
    return d.T @ x, d.sum(0)


def sgd(p, g, s, lr, t, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    g = g + weight_decay * p
    if momentum:
        s["v"] = g if t == 1 else momentum * s["v"] + (1 - dampening) * g
        g = g + momentum * s["v"] if nesterov else s["v"]
    return p - lr * g


def adam(p, g, s, lr, t, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * p
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g * g
    return p - lr * (s["m"] / (1 - betas[0] ** t)) / (np.sqrt(s["v"] / (1 - betas[1] ** t)) + eps)


def rmsprop(p, g, s, lr, t, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    g = g + weight_decay * p
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g * g
    s["m"] = alpha * s.get("m", 0) + (1 - alpha) * g
    s["b"] = momentum * s.get("b", 0) + g / (np.sqrt(s["v"] - (s["m"] ** 2 if centered else 0)) + eps)
    return p - lr * s["b"]


RULES = {"SGD": sgd, "Adam": adam, "AdamW": lambda *a, **k: adam(*a, **k, decoupled=True), "RMSprop": rmsprop}


def by_the_rules(name, options):
    options = dict(options)
    lr, params, states = options.pop("lr"), list(START), ({}, {})
    for i in range(10):
        found = gradients(*params, XS[i], YS[i])
        params = [RULES[name](p, g, s, lr, i + 1, **options) for p, g, s in zip(params, found, states)]
        lr = lr / 10 if i == 4 else lr
    return params


@MODES
@pytest.mark.parametrize("name, options", ROWS)
def test_ten_steps_follow_the_rule(name, options, mode):
    expected = by_the_rules(name, options)
    for dtype, tolerance in (("float64", 1e-9), ("float32", 2e-5)):
        for mine, theirs in zip(train(name, options, dtype, mode)[0], expected):
            np.testing.assert_allclose(mine, theirs, atol=tolerance)


@pytest.mark.parametrize("name, options", ROWS)
def test_ten_steps_are_pytorchs(name, options):
    torch = pytest.importorskip("torch")
    w, b = (torch.tensor(a, requires_grad=True) for a in START)
    optimizer = getattr(torch.optim, name)([w, b], **options)
    for i in range(10):
        loss = torch.nn.functional.mse_loss(
            torch.tanh(torch.nn.functional.linear(torch.tensor(XS[i]), w, b)), torch.tensor(YS[i])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i == 4:
            optimizer.param_groups[0]["lr"] /= 10
    for mine, theirs in zip(train(name, options)[0], (w, b)):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=1e-9)


@pytest.mark.parametrize("name, options", ROWS)
def test_saved_state_continues_with_the_same_numbers(name, options):
    w = nn.Parameter(START[1])
    first = getattr(optim, name)([w], **options)

    def run(optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (w * w * w).sum().backward()
            optimizer.step()
        return w.numpy().copy()

    run(first, 3)
    first.lr = 0.003
    here, saved = w.numpy().copy(), first.state_dict()
    expected = run(first, 3)
    w.assign(tw.tensor(here))
    second = getattr(optim, name)([w], **options)
    second.load_state_dict(saved)
    assert second.lr == 0.003
    np.testing.assert_array_equal(run(second, 3), expected)


def test_groups_have_their_own_settings():
    a, b = nn.Parameter([1.0]), nn.Parameter([1.0])
    optimizer = optim.SGD([{"params": [a], "lr": 0.5, "weight_decay": 1.0}, {"params": b}], lr=0.1)
    (a + b).sum().backward()
    optimizer.step()
    np.testing.assert_allclose([a.item(), b.item()], [1 - 0.5 * 2, 1 - 0.1], rtol=1e-6)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5, 0.1])
    optimizer.param_groups[1]["lr"] = 0.25
    assert optimizer.param_groups[1]["lr"] == 0.25 and optimizer.lr == 0.5


def test_named_parameters_serve_and_missing_gradients_are_left_alone():
    net = nn.Linear(2, 2)
    optimizer = optim.SGD(net.named_parameters(), lr=1.0, momentum=0.9)
    before = net.bias.numpy().copy()
    (net.weight * 2).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(net.bias.numpy(), before)
    assert [n for n, _ in optimizer.named_variables()] == ["lr.0", "momentum.0", "momentum.1"]


def test_half_precision_parameters_are_updated_in_float32():
    w = nn.Parameter(np.ones(1, np.float16))
    optimizer = optim.SGD([w], lr=1e-3)
    (w * 0.9).sum().backward()
    optimizer.step()
    assert w.dtype == "float16" and w.item() == float(np.float16(1 - 0.9e-3))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda w: optim.SGD([], lr=0.1), ["no parameters", "model.parameters()"]),
        (lambda w: optim.SGD([w, w], lr=0.1), ["given twice"]),
        (lambda w: optim.SGD([tw.ones((2,))], lr=0.1), ["got a Tensor", "Parameters"]),
        (lambda w: optim.SGD([w], lr=-1.0), ["lr=-1.0"]),
        (lambda w: optim.SGD([w], lr=0.1, nesterov=True), ["nesterov", "momentum"]),
        (lambda w: optim.Adam([w], betas=(0.9, 1.0)), ["betas", "[0, 1)"]),
        (lambda w: optim.SGD([{"params": [w], "rate": 1}], lr=0.1), ["'rate'", "weight_decay"]),
    ],
)
def test_errors_teach(make, words):
    with pytest.raises(ArgumentError) as caught:
        make(nn.Parameter([1.0]))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_state_of_another_optimizer_is_refused():
    a, b = nn.Parameter([1.0]), nn.Parameter([1.0, 2.0])
    with pytest.raises(WeightsError, match=r"missing \['mean.0', 'square.0', 'step.0'\]; unexpected \['momentum.0'\]"):
        optim.Adam([a]).load_state_dict(optim.SGD([a], momentum=0.9).state_dict())
    with pytest.raises(WeightsError, match=r"momentum\.0: shape \(2,\), expected \(1,\)"):
        optim.SGD([a], momentum=0.9).load_state_dict(optim.SGD([b], momentum=0.9).state_dict())


# ---- clipping --------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("norm_type, exact", [(2.0, 13.0), (float("inf"), 12.0)])
def test_clipping_by_norm(norm_type, exact, mode):
    a, b, c = nn.Parameter([0.0, 0.0]), nn.Parameter([0.0]), nn.Parameter([0.0])

    def step(x):
        (a * x + b * 6.0).sum().backward()
        total = nn.utils.clip_grad_norm_([a, b, c], 1.0, norm_type)
        return total, a.grad, b.grad

    # the gradient of a is (3, 4), that of b 6 from each of two elements
    run = tw.compile(step) if mode == "compiled" else step
    total, ga, gb = run(tw.tensor([3.0, 4.0]))
    np.testing.assert_allclose(total.item(), exact, rtol=1e-6)
    np.testing.assert_allclose([*ga.tolist(), *gb.tolist()], np.array([3, 4, 12]) / exact, rtol=1e-5)
    assert c.grad is None


def test_clipping_leaves_small_gradients_alone():
    a = nn.Parameter([0.0, 0.0])
    (a * tw.tensor([0.3, 0.4])).sum().backward()
    assert abs(nn.utils.clip_grad_norm_(a, 1.0).item() - 0.5) < 1e-6
    np.testing.assert_allclose(a.grad.numpy(), [0.3, 0.4], rtol=1e-6)
    nn.utils.clip_grad_value_(a, 0.35)
    np.testing.assert_allclose(a.grad.numpy(), [0.3, 0.35], rtol=1e-6)
