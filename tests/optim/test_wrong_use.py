"""Settings and states that make no sense are refused with an error that says so; none is taken silently."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold import optim as O

NAN, INF = float("nan"), float("inf")


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(np.ones(shape or (2,), np.float32))


def sgd(**options):
    return O.SGD([p()], **{"lr": 0.1, **options})


WRONG = {
    "lr as text": (lambda: sgd(lr="0.1"), r"lr='0.1'; expected a number"),
    "no lr": (lambda: sgd(lr=None), "lr=None; expected a number"),
    "infinite lr": (lambda: sgd(lr=INF), "lr=inf; expected a number"),
    "lr of a group": (lambda: O.SGD([{"params": [p()], "lr": -1.0}], lr=0.1), "lr=-1.0"),
    "lr set to NaN": (lambda: setattr(sgd(), "lr", NAN), "lr=nan"),
    "lr set to a word": (lambda: sgd().param_groups[0].__setitem__("lr", "x"), "lr='x'"),
    "negative lr set": (lambda: sgd().param_groups[0].__setitem__("lr", -1), "lr=-1"),
    "negative momentum set": (lambda: sgd().param_groups[0].__setitem__("momentum", -4), "momentum=-4"),
    "momentum as text": (lambda: sgd(momentum="x"), "momentum='x'"),
    "a schedule's NaN": (lambda: O.LambdaLR(sgd(), lambda t: NAN), "lr=nan"),
    "a schedule that turns around": (lambda: O.StepLR(sgd(), 1, gamma=-1.0).step(), "lr=-0.1"),
    "one beta": (lambda: O.Adam([p()], betas=0.9), r"betas=0.9; expected two numbers"),
    "three betas": (lambda: O.Adam([p()], betas=(0.9, 0.9, 0.9)), r"expected two numbers"),
    "a group without parameters": (lambda: O.SGD([{"lr": 0.1}], lr=0.1), "a group has no 'params'; it has lr"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refused(name):
    make, message = WRONG[name]
    with pytest.raises(tw.ArgumentError, match=message):
        make()


GOOD = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "size": 1}
STATES = [
    5, {}, {"state": {}}, {"state": 1, "groups": []}, {"state": {}, "groups": [1]}, {"state": {"lr.0": "x"}, "groups": [GOOD]},
    {"state": {"lr.0": np.array("x")}, "groups": [GOOD]}, {"state": {"lr.0": np.array(0.1)}, "groups": [{"size": 1}]},
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=range(len(STATES)))
def test_what_is_no_state_changes_nothing(state):
    optimizer = sgd()
    with pytest.raises(tw.WeightsError, match="SGD"):
        optimizer.load_state_dict(state)
    assert optimizer.lr == pytest.approx(0.1) and optimizer.param_groups[0]["momentum"] == 0.0


def test_settings_in_a_state_are_checked():
    optimizer = sgd()
    with pytest.raises(tw.ArgumentError, match="momentum='x'"):
        optimizer.load_state_dict({"state": {"lr.0": np.array(0.5)}, "groups": [{**GOOD, "momentum": "x"}]})
    assert optimizer.lr == pytest.approx(0.1)


def test_centred_rmsprop_survives_a_gradient_that_stays():
    """Its variance is then 0 up to rounding, which may be below 0."""
    w = nn.Parameter(np.zeros(400, np.float32))
    optimizer = O.RMSprop([w], lr=1e-9, centered=True, alpha=0.5, eps=1e-3)
    g = tw.tensor(np.random.default_rng(0).uniform(0, 100, 400).astype(np.float32))

    @tw.compile
    def step():
        (w * g).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(60):
        step()
    assert np.isfinite(w.numpy()).all()
