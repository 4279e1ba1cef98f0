"""jvp and hvp against JAX; the numeric checker finds wrong gradients and passes right ones."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.base.errors import GradientError, ShapeError

jax = pytest.importorskip("jax")
jnp = jax.numpy

A = np.float64([[0.3, -0.8, 1.2], [0.5, 0.1, -0.4]])
T = np.float64([[1.0, 0.5, -2.0], [0.0, 3.0, 1.0]])

FUNCTIONS = {
    "elementwise": (lambda x: tw.sin(x) * x, lambda x: jnp.sin(x) * x),
    "matmul": (lambda x: x @ x.T, lambda x: x @ x.T),
    "norm": (lambda x: tw.sqrt((x * x).sum()), lambda x: jnp.sqrt((x * x).sum())),
    "softmax": (lambda x: tw.exp(x) / tw.exp(x).sum(axis=1, keepdims=True), lambda x: jax.nn.softmax(x, 1)),
    "difference": (lambda x: tw.stack([x, -x]).sum(axis=0) + x, lambda x: x),
    "constant": (lambda x: x.detach() * 2, lambda x: jax.lax.stop_gradient(x) * 2),
}


@pytest.mark.parametrize("mode", [lambda f: f, tw.compile], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp(name, mode):
    ours, theirs = FUNCTIONS[name]
    y, dy = mode(lambda x, t: tw.jvp(ours, (x,), (t,)))(tw.tensor(A), tw.tensor(T))
    with jax.enable_x64(True):
        expected, direction = jax.jvp(theirs, (A,), (T,))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(dy.numpy(), direction, rtol=1e-12, atol=1e-14)


def test_jvp_of_several_arguments_and_results():
    _, (dy, dz) = tw.jvp(
        lambda a, b: (a["u"] * b, (b * b).sum()),
        ({"u": tw.tensor(A)}, tw.tensor(T)),
        ({"u": tw.tensor(T)}, tw.tensor(A)),
    )
    np.testing.assert_allclose(dy.numpy(), T * T + A * A)
    np.testing.assert_allclose(float(dz), 2 * (A * T).sum())


def test_jvp_at_infinite_slopes_of_zero_is_safe():
    _, dy = tw.jvp(lambda x: tw.sqrt(x), (tw.tensor([0.0, 4.0]),), (tw.tensor([0.0, 1.0]),))
    assert dy.tolist()[1] == 0.25


def test_jvp_can_be_differentiated():
    f = lambda x: tw.jvp(lambda v: v**3, (x,), (tw.tensor(1.0),))[1]
    assert tw.grad(f)(tw.tensor(2.0)).item() == pytest.approx(12.0)


def test_jvp_without_gradient_mode():
    with tw.no_grad():
        y, dy = tw.jvp(tw.exp, (tw.tensor(0.0),), (tw.tensor(2.0),))
    assert dy.item() == 2.0 and not dy.requires_grad and not y.requires_grad


@pytest.mark.parametrize("mode", [lambda f: f, tw.compile], ids=["eager", "compiled"])
def test_hvp(mode):
    ours = lambda x: (tw.exp(x) * tw.sin(x)).sum() + (x.sum()) ** 3
    theirs = lambda x: (jnp.exp(x) * jnp.sin(x)).sum() + x.sum() ** 3
    (found,) = mode(lambda x, v: tw.hvp(ours, (x,), (v,)))(tw.tensor(A), tw.tensor(T))
    with jax.enable_x64(True):
        expected = jax.jvp(jax.grad(theirs), (A,), (T,))[1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_wrong_tangents():
    with pytest.raises(ShapeError, match=r"tangent has shape \(2,\); its primal has \(3,\)"):
        tw.jvp(tw.exp, (tw.zeros(3),), (tw.zeros(2),))
    with pytest.raises(GradientError, match="one tangent per primal"):
        tw.jvp(tw.exp, (tw.zeros(3),), (tw.zeros(3), tw.zeros(3)))


# ---- the checker -----------------------------------------------------------------------------------------------------


def wrong(order):
    """exp with a gradient that is wrong at one order: first (times 1.01), or second (a residual held constant)."""
    f = tw.custom_vjp(lambda x: tw.exp(x))
    if order == 1:
        f.defvjp(lambda x: (tw.exp(x), tw.exp(x)), lambda y, g: (g * y * 1.01,))
    else:
        f.defvjp(lambda x: (tw.exp(x), tw.exp(x).detach()), lambda y, g: (g * y,))
    return f


def test_right_gradients_pass():
    tw.autodiff.check(lambda x, i: {"a": tw.take(x, i), "b": [x.sum() ** 2]}, [A[0], np.array([0, 2])], order=3)
    tw.autodiff.check(wrong(2), [A], order=1)


@pytest.mark.parametrize("order", [1, 2])
def test_wrong_gradients_are_found(order):
    with pytest.raises(GradientError, match=rf"order {order}: 6 of 6 .*\n  input 0\[0, 0\]: gradient .*off by"):
        tw.autodiff.check(wrong(order), [A])


def test_a_kink_is_found():
    with pytest.raises(GradientError, match=r"order 1: 1 of 2"):
        tw.autodiff.check(lambda x: tw.where(x > 0, x * 2, x), [[0.0, 1.0]])


def test_nothing_to_check():
    with pytest.raises(GradientError, match="no input is floating"):
        tw.autodiff.check(lambda i: i, [np.array([1, 2])])
