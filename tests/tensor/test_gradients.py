"""The gradient functions: nests, several results, composition, and gradients where slopes are infinite."""

from __future__ import annotations

import math

import numpy as np
import pytest

import twofold as tw
from twofold import autodiff


def test_gradients_have_the_nest_of_xs_and_none_where_nothing_leads():
    a, b, c = (tw.tensor(v, requires_grad=True) for v in (1.0, 2.0, 3.0))
    out = tw.gradients({"y": a * b, "z": a * a}, {"a": a, "rest": [b, c]})
    assert (out["a"].item(), out["rest"][0].item(), out["rest"][1]) == (4.0, 1.0, None)
    assert a.grad is None


def test_gradients_weighs_by_grad_ys():
    x = tw.tensor([1.0, 2.0], requires_grad=True)
    assert tw.gradients([x * x, x], [x], [tw.tensor([1.0, 10.0]), None])[0].tolist() == [3.0, 41.0]
    with pytest.raises(tw.ShapeError, match=r"gradient given for y has shape \(3,\); y has \(2,\)"):
        tw.gradients(x * x, x, tw.ones(3))


def test_gradients_with_respect_to_an_unrecorded_tensor_is_an_error():
    with pytest.raises(tw.GradientError, match=r"xs\[0\] .* does not require gradients.*requires_grad=True"):
        tw.gradients(tw.tensor(1.0) * 2, tw.tensor(1.0))


def test_nested_grads_give_every_derivative():
    f = lambda x: tw.sin(x)
    for n in range(5):
        want = math.sin(0.7 + n * math.pi / 2)
        assert f(tw.tensor(0.7, dtype=tw.float64)).item() == pytest.approx(want, abs=1e-12)
        f = tw.grad(f)


def test_grad_inside_grad_tells_its_own_variable_from_the_outer_one():
    # d/dx [x * d/dy (x + y)] = 1: perturbation confusion would give 2
    assert tw.grad(lambda x: x * tw.grad(lambda y: x + y)(tw.tensor(1.0)))(tw.tensor(1.0)).item() == 1.0


def test_argnums_nests_and_auxiliary_results():
    f = lambda p, x: ((p["w"] * x).sum() + p["b"], {"n": x})
    p = {"w": tw.tensor([1.0, 2.0]), "b": tw.tensor(0.5)}
    (value, aux), (gp, gx) = tw.value_and_grad(f, argnums=(0, 1), has_aux=True)(p, tw.tensor([3.0, 4.0]))
    assert value.item() == 11.5 and aux["n"].tolist() == [3.0, 4.0]
    assert (gp["w"].tolist(), gp["b"].item(), gx.tolist()) == ([3.0, 4.0], 1.0, [1.0, 2.0])
    assert not (value.requires_grad or gp["w"].requires_grad or aux["n"].requires_grad)


def test_the_gradient_of_a_closed_over_variable_survives():
    w = tw.Variable(3.0, requires_grad=True)
    g = tw.grad(lambda x: w * x * x)(tw.tensor(2.0))
    g.backward()
    assert (g.item(), w.grad.item()) == (12.0, 4.0)


def test_functional_gradients_work_inside_no_grad_and_record_nothing_there():
    w = tw.Variable(3.0, requires_grad=True)
    with tw.no_grad():
        g = tw.grad(lambda x: w * x * x)(tw.tensor(2.0))
    assert g.item() == 12.0 and not g.requires_grad


@pytest.mark.parametrize(
    ("f", "x", "message"),
    [
        (lambda x: x * 2, [1.0, 2.0], r"returned shape \(2,\); expected one element"),
        (lambda x: 3.0, [1.0], "returned a float; expected a tensor"),
        (lambda x: x.sum(), [1, 2], r"i64\[2\] argument; cast it or choose argnums"),
    ],
)
def test_grad_explains_what_it_cannot_differentiate(f, x, message):
    with pytest.raises(tw.GradientError, match=message):
        tw.grad(f)(tw.tensor(x))


TRAPS = {  # the branch of `where` that is not taken has an infinite slope at 0 (or beyond the range of exp)
    "log": (lambda x: tw.where(x > 0, tw.log(x), 0.0), 0.0),
    "log1p": (lambda x: tw.where(x > -1, tw.log1p(x), 0.0), -1.0),
    "sqrt": (lambda x: tw.where(x > 0, tw.sqrt(x), 0.0), 0.0),
    "quotient": (lambda x: tw.where(x != 0, 1 / x, 0.0), 0.0),
    "reciprocal": (lambda x: tw.where(x != 0, tw.reciprocal(x), 0.0), 0.0),
    "power": (lambda x: tw.where(x > 0, x**-0.5, 0.0), 0.0),
    "asin": (lambda x: tw.where(x < 1, tw.asin(x), 0.0), 1.0),
    "acosh": (lambda x: tw.where(x > 1, tw.acosh(x), 0.0), 1.0),
    "atanh": (lambda x: tw.where(x < 1, tw.atanh(x), 0.0), 1.0),
    "exp": (lambda x: tw.where(x < 50, tw.exp(x), 0.0), 1e4),
    "hypot": (lambda x: tw.hypot(x, x), 0.0),
    "norm": (lambda x: tw.tensor(0.0) + x.norm(), 0.0),
}


@pytest.mark.parametrize("name", TRAPS)
def test_untaken_branches_and_norms_at_zero_do_not_poison_gradients(name):
    f, at = TRAPS[name]
    x = tw.tensor([at], requires_grad=True)
    assert tw.gradients(f(x).sum(), x).tolist() == [0.0]


@pytest.mark.parametrize("f", [tw.log, tw.sqrt, tw.reciprocal, tw.exp, lambda x: x / x**3, lambda x: x**1.5])
def test_care_for_zero_cotangents_does_not_change_second_derivatives(f):
    """A mask on the cotangent alone would drop d2/(dg dx) where g is 0."""
    autodiff.check(lambda x, w: (f(x) * w).sum(), [[0.5, 2.0], [0.0, 1.0]])


@pytest.mark.parametrize("reduce", [tw.max, tw.min], ids=["max", "min"])
def test_ties_share_the_gradient(reduce):
    x = tw.tensor(np.full((2, 4), 3.0), requires_grad=True)
    assert tw.gradients(reduce(x, axis=1).sum(), x).tolist() == [[0.25] * 4] * 2
