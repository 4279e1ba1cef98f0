"""Eager steps of large models become one program; what they do to parameters and moments stays what the ops do."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn, optim
from twofold.optim import whole

SHAPES = (200, 170), (170,), (3, 1, 5)
RULES = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    (optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.AdamW, {"lr": 0.01}),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
]


def _train(rule, options, before_step, steps=8):
    """Steps along random gradients; ``before_step(number, optimizer, parameters)`` may interfere."""
    rng = np.random.default_rng(0)
    params = [nn.Parameter(rng.standard_normal(s).astype(np.float32)) for s in SHAPES]
    optimizer = rule(params, **options)
    for number in range(steps):
        for p in params:
            p.grad = tw.tensor(rng.standard_normal(p.shape).astype(np.float32))
        before_step(number, optimizer, params)
        optimizer.step()
    return [p.numpy().copy() for p in params] + [v.numpy().copy() for _, v in optimizer.named_variables()]


def _lower_rate(number, optimizer, params):
    if number == 5:
        optimizer.lr = 0.003


def _other_settings(number, optimizer, params):
    if number == 4:
        optimizer.param_groups[0]["weight_decay"] = 0.2


def _missing_gradients(number, optimizer, params):
    if number % 2:
        params[1].grad = None


def _another_group(number, optimizer, params):
    if number == 3:
        late = nn.Parameter(np.ones((7, 11), np.float32))
        late.grad = tw.tensor(np.full((7, 11), 0.5, np.float32))
        optimizer.add_param_group({"params": [late]})
        params.append(late)


INTERFERENCES = [lambda *_: None, _lower_rate, _other_settings, _missing_gradients, _another_group]


@pytest.mark.parametrize("interfere", INTERFERENCES, ids=["plain", "rate", "settings", "missing", "group"])
@pytest.mark.parametrize(("rule", "options"), RULES, ids=lambda v: v.__name__ if isinstance(v, type) else "")
def test_a_compiled_step_is_the_step(rule, options, interfere, monkeypatch):
    runs = []
    run = whole.WholeStep.run
    monkeypatch.setattr(whole.WholeStep, "run", lambda s, o: runs.append(done := run(s, o)) or done)
    found = _train(rule, options, interfere)
    assert runs[:2] == [False, False] and runs[-1]
    monkeypatch.setattr(whole.WholeStep, "run", lambda s, o: False)
    for got, want in zip(found, _train(rule, options, interfere), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_who_looks_at_parameters_keeps_what_was_there():
    looks = []

    def look(number, optimizer, params):
        looks.append((params[0].numpy(), params[0].numpy().copy(), params[0].detach(), np.from_dlpack(params[0])))

    _train(optim.SGD, {"lr": 0.1, "momentum": 0.9}, look)
    for seen, numbers, detached, shared in looks:
        np.testing.assert_array_equal(seen, numbers)
        np.testing.assert_array_equal(detached.numpy(), numbers)
        np.testing.assert_array_equal(shared, numbers)


def test_a_recorded_computation_keeps_the_parameters_it_read():
    records = []

    def record(number, optimizer, params):
        x = tw.tensor(params[0].numpy().copy(), requires_grad=True)
        records.append((x, (x * params[0]).sum(), params[0].numpy().copy()))

    _train(optim.SGD, {"lr": 0.1}, record)
    for x, y, numbers in records:
        np.testing.assert_array_equal(tw.gradients(y, x).numpy(), numbers)


def test_a_rule_of_the_users_own_runs_op_by_op():
    """Its ``update`` may do what a trace would do only once."""
    calls = []

    class Noted(optim.SGD):
        def update(self, p, g, lr, state, step, s):
            calls.append(p.shape)
            return super().update(p, g, lr, state, step, s)

    _train(Noted, {"lr": 0.1}, lambda *_: None, steps=6)
    assert len(calls) == 6 * len(SHAPES)


def test_parameters_that_come_later_count(monkeypatch):
    """Few parameters are left to the ops; with a large group added the step is a program."""
    runs = []
    run = whole.WholeStep.run
    monkeypatch.setattr(whole.WholeStep, "run", lambda s, o: runs.append(done := run(s, o)) or done)
    small, large = nn.Parameter(np.ones(3, np.float32)), nn.Parameter(np.ones((200, 200), np.float32))
    optimizer = optim.SGD([small], lr=0.5)
    for number in range(8):
        if number == 4:
            optimizer.add_param_group({"params": [large]})
        small.grad, large.grad = tw.ones(3), tw.ones((200, 200))
        optimizer.step()
    assert runs == [False] * 6 + [True] * 2
    assert small.numpy().tolist() == [-3.0] * 3 and (large.numpy() == -1.0).all()
