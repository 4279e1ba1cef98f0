"""Learning-rate schedules: against PyTorch over forty steps, and by hand; composed, saved, and without a new trace."""

from __future__ import annotations

import math

import numpy as np
import pytest

import twofold as tw
from twofold import nn, optim
from twofold.base.errors import ArgumentError


def made(lr=0.8, groups=1):
    return optim.SGD([{"params": [nn.Parameter([1.0])], "lr": lr / (i + 1)} for i in range(groups)], lr=lr)


def run(schedule, steps):
    out = [schedule.optimizer.lr]
    for _ in range(steps):
        schedule.step()
        out.append(schedule.optimizer.lr)
    return out


ROWS = [
    ("StepLR", {"step_size": 7, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [5, 12, 12, 30], "gamma": 0.1}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 40, "eta_min": 0.01}),
    ("PolynomialLR", {"total_iters": 25, "power": 2.0}),
]


@pytest.mark.parametrize("name, options", ROWS)
def test_forty_steps_are_pytorchs(name, options):
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    schedule = getattr(torch.optim.lr_scheduler, name)(theirs, **options)
    expected = [0.8]
    for _ in range(40):
        theirs.step()
        schedule.step()
        expected.append(schedule.get_last_lr()[0])
    np.testing.assert_allclose(run(getattr(optim, name)(made(), **options), 40), expected, rtol=1e-5, atol=1e-8)


BY_HAND = [
    (lambda o: optim.StepLR(o, 2), [0.8, 0.8, 0.08, 0.08, 0.008]),
    (lambda o: optim.MultiStepLR(o, [1, 3], 0.5), [0.8, 0.4, 0.4, 0.2, 0.2]),
    (lambda o: optim.ExponentialLR(o, 0.5), [0.8, 0.4, 0.2, 0.1, 0.05]),
    (lambda o: optim.CosineAnnealingLR(o, 4), [0.8, 0.4 + 0.4 * math.sqrt(0.5), 0.4, 0.4 - 0.4 * math.sqrt(0.5), 0.0]),
    (lambda o: optim.PolynomialLR(o, 2), [0.8, 0.4, 0.0, 0.0, 0.0]),
    (lambda o: optim.LambdaLR(o, lambda t: 1 / (1 + t)), [0.8, 0.4, 0.8 / 3, 0.2, 0.16]),
    (lambda o: optim.LinearWarmup(o, 2, start=0.5), [0.4, 0.6, 0.8, 0.8, 0.8]),
    (lambda o: optim.LinearWarmup(o, 2, after=optim.StepLR(o, 1, 0.5)), [0.0, 0.4, 0.8, 0.4, 0.2]),
    (
        lambda o: optim.SequentialLR(o, [optim.LinearWarmup(o, 4), optim.ExponentialLR(o, 0.5)], [2]),
        [0.0, 0.2, 0.8, 0.4, 0.2],
    ),
]


@pytest.mark.parametrize("make, expected", BY_HAND)
def test_four_steps_by_hand(make, expected):
    np.testing.assert_allclose(run(make(made()), 4), expected, atol=1e-7)


def test_every_group_keeps_its_proportion():
    schedule = optim.StepLR(made(groups=2), 1, 0.5)
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.4, 0.2])
    assert [g["lr"] for g in schedule.optimizer.param_groups] == pytest.approx([0.4, 0.2])


METRICS = [5.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 2.9999, 2.9999]


@pytest.mark.parametrize(
    "options", [{}, {"cooldown": 2}, {"threshold_mode": "abs", "threshold": 0.5}, {"min_lr": 0.05}]
)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_is_pytorchs(options, mode):
    torch = pytest.importorskip("torch")
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    options = {"patience": 2, "mode": mode, **options}
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    mine = optim.ReduceLROnPlateau(made(), **options)
    for metric in METRICS:
        value = metric if mode == "min" else 10 - metric
        expected.step(value)
        mine.step(value)
        assert mine.optimizer.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6)


def test_plateau_by_hand():
    schedule = optim.ReduceLROnPlateau(made(), patience=1)
    rates = []
    for metric in [5.0, 5.0, 5.0, 5.0, 1.0]:
        schedule.step(metric)
        rates.append(round(schedule.optimizer.lr, 6))
    assert rates == [0.8, 0.8, 0.08, 0.08, 0.08]
    with pytest.raises(ArgumentError, match="needs the metric"):
        schedule.step()


@pytest.mark.parametrize("make", [*(row[0] for row in BY_HAND), lambda o: optim.ReduceLROnPlateau(o, patience=0)])
def test_saved_schedules_continue(make):
    go = lambda schedule: schedule.step(*([1.0] if schedule.needs_metric else []))
    first, second = make(made()), make(made())
    for _ in range(2):
        go(first)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert second.optimizer.lr == first.optimizer.lr
        go(first)
        go(second)


def test_a_schedule_needs_no_new_trace():
    w = nn.Parameter([1.0])
    optimizer = optim.SGD([w], lr=0.1)

    @tw.compile
    def step():
        optimizer.zero_grad()
        w.sum().backward()
        optimizer.step()

    schedule = optim.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        step()
        schedule.step()
    np.testing.assert_allclose(w.item(), 1 - 0.1 - 0.05 - 0.025, rtol=1e-6)
    assert step.retraces == []


def test_errors_teach():
    for make, words in [
        (lambda: optim.StepLR(made(), 0), "step_size=0"),
        (lambda: optim.SequentialLR(made(), [], [1]), "one milestone fewer"),
        (lambda: optim.ReduceLROnPlateau(made(), mode="best"), "'best'"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            make()

    @tw.compile
    def wrong():
        optimizer = made_once
        optimizer.lr = 0.1

    made_once = made()
    with pytest.raises(ArgumentError, match="outside the compiled function"):
        wrong()
