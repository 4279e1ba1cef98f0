"""Dynamic loss scaling: it grows, it backs off, a step that overflows changes nothing, and its state can be resumed."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.nn import functional as F

GRADIENT = np.array([[3.0, 5.0]], np.float32)


def setting(compiled, momentum=0.9, **options):
    """A parameter whose gradient in float16 overflows where the input is too large for the factor."""
    w = tw.nn.Parameter(np.ones((1, 2), np.float32))
    opt = tw.optim.SGD([w], lr=0.125, momentum=momentum)
    scale = tw.optim.LossScale(**options)

    def step(x):
        with tw.autocast("fp16"):
            loss = F.linear(x, w).to(tw.float32).sum()
        opt.zero_grad()
        scale.scale(loss).backward()
        done = scale.step(opt)
        opt.zero_grad()
        return done

    return w, opt, scale, tw.compile(step) if compiled else step


BOTH = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
DEVICES = pytest.mark.parametrize("device", ["reference", "cpu", "xla:cpu"])


@DEVICES
@BOTH
def test_an_overflow_skips_the_step_and_halves_the_factor(compiled, device):
    if device == "xla:cpu":
        pytest.importorskip("jax")
    with tw.device(device):
        w, opt, scale, step = setting(compiled, initial=2.0**14)
        fine, large = tw.tensor(GRADIENT), tw.tensor(GRADIENT * 4)  # 5 * 4 * 2**14 is beyond 65504
        assert not step(large).item()
        assert scale.factor.item() == 2.0**13 and scale.skipped.item() == 1
        np.testing.assert_array_equal(w.numpy(), 1.0)
        assert all((v.numpy() == 0).all() for name, v in opt.named_variables() if "momentum" in name)
        assert step(fine).item()
        np.testing.assert_array_equal(w.numpy(), 1.0 - 0.125 * GRADIENT)  # exact: the factor is a power of two
        assert (scale.factor.item(), scale.good_steps.item(), scale.skipped.item()) == (2.0**13, 1, 1)


@BOTH
def test_it_grows_after_good_steps_in_a_row_up_to_its_maximum(compiled):
    _, _, scale, step = setting(compiled, momentum=0.0, initial=4.0, growth_interval=3, maximum=16.0)
    fine, broken = tw.tensor(GRADIENT), tw.tensor(GRADIENT * np.float32(np.inf))
    seen = []
    for x in [fine] * 2 + [broken] + [fine] * 10:
        step(x)
        seen.append(scale.factor.item())
    assert seen == [4, 4, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16]


@BOTH
def test_it_stops_at_its_minimum_and_says_so(compiled):
    _, _, scale, step = setting(compiled, initial=4.0, minimum=2.0)
    broken = tw.tensor(GRADIENT * np.float32(np.nan))
    assert not scale.exhausted().item()
    assert not step(broken).item() and scale.factor.item() == 2.0 and scale.exhausted().item()
    assert not step(broken).item() and scale.factor.item() == 2.0 and scale.skipped.item() == 2


def test_small_gradients_survive():
    """A gradient of 2**-30 is 0 in float16 without a factor."""
    for initial, expected in ((1.0, 0.0), (2.0**16, 2.0**-30)):
        w = tw.nn.Parameter(np.zeros((1, 1), np.float32))
        opt = tw.optim.SGD([w], lr=1.0)
        scale = tw.optim.LossScale(initial=initial)
        with tw.autocast("fp16"):
            loss = F.linear(tw.ones((1, 1)), w).to(tw.float32).sum() * 2.0**-30
        scale.scale(loss).backward()
        scale.step(opt)
        assert -w.item() == expected


@BOTH
def test_gradients_are_clipped_between_unscale_and_step(compiled):
    w = tw.nn.Parameter(np.zeros((1, 2), np.float32))
    opt = tw.optim.SGD([w], lr=1.0)
    scale = tw.optim.LossScale(initial=1024.0)

    def step(x):
        opt.zero_grad()
        scale.scale((x * w).sum()).backward()
        finite = scale.unscale(opt)
        norm = tw.nn.utils.clip_grad_norm_([w], 1.0)
        scale.step(opt, finite)
        opt.zero_grad()
        return norm

    norm = (tw.compile(step) if compiled else step)(tw.tensor([[3.0, 4.0]]))
    assert norm.item() == 5.0
    np.testing.assert_allclose(w.numpy(), [[-0.6, -0.8]], rtol=1e-5)


def test_adam_does_not_count_a_skipped_step():
    w = tw.nn.Parameter([1.0])
    opt, scale = tw.optim.Adam([w]), tw.optim.LossScale()
    for x in (np.inf, 1.0):
        opt.zero_grad()
        scale.scale((w * x).sum()).backward()
        scale.step(opt)
    assert dict(opt.named_variables())["step.0"].item() == 1 and np.isfinite(w.numpy()).all()


def test_the_state_goes_to_another_and_is_checked():
    _, _, scale, step = setting(False)
    step(tw.tensor(GRADIENT))
    other = tw.optim.LossScale()
    other.load_state_dict(scale.state_dict())
    assert repr(other) == repr(scale) and other.good_steps.item() == scale.good_steps.item()
    with pytest.raises(tw.WeightsError, match="expected factor, good_steps, skipped"):
        other.load_state_dict({"scale": np.float32(1)})


def test_mistakes_are_told():
    with pytest.raises(tw.ArgumentError, match="initial=0.5"):
        tw.optim.LossScale(initial=0.5)
    with pytest.raises(tw.ArgumentError, match="interval of at least 1"):
        tw.optim.LossScale(growth_interval=0)
    with pytest.raises(tw.ArgumentError, match="call scale"):
        tw.optim.LossScale().step(tw.optim.SGD([tw.nn.Parameter([1.0])], lr=0.1))
