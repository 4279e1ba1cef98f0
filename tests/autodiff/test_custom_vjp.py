"""custom_vjp: the rule is used, in every mode and order; wrong rules are errors that say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.base.errors import GradientError, ShapeError
from twofold.ir.text import parse_graph, print_graph
from twofold.passes import optimise

X = np.float32([0.1, 0.2])
MODES = pytest.mark.parametrize("mode", [lambda f: f, tw.compile], ids=["eager", "compiled"])


@tw.custom_vjp
def product(x, y):
    """sin(x) y, whose gradient by x is twice what it should be: to be seen to be used."""
    return tw.sin(x) * y


product.defvjp(
    lambda x, y: (tw.sin(x) * y, {"cos": tw.cos(x), "sin": tw.sin(x), "y": y, "twice": 2.0}),
    lambda kept, g: (kept["cos"] * g * kept["y"] * kept["twice"], kept["sin"] * g),
)


def gradient(x):
    return 2 * np.cos(x) * x**2 + np.sin(x) * 2 * x


@MODES
def test_the_rule_is_used(mode):
    g = mode(tw.grad(lambda x: product(x, x * x).sum()))
    np.testing.assert_allclose(g(tw.tensor(X)).numpy(), gradient(X), rtol=1e-5)


@MODES
def test_a_second_differentiation_goes_through_the_rule(mode):
    h = mode(tw.grad(lambda x: tw.grad(lambda v: product(v, v * v).sum())(x).sum()))
    expected = -2 * np.sin(X) * X**2 + 4 * X * np.cos(X) + np.cos(X) * 2 * X + 2 * np.sin(X)
    # by x through the residual y = x*x too; cos and sin are differentiated as themselves
    np.testing.assert_allclose(h(tw.tensor(X)).numpy(), expected, rtol=1e-5)


@MODES
def test_inside_a_branch(mode):
    f = mode(tw.grad(lambda x: tw.cond(x.sum() > 0, lambda v: product(v, v * v).sum(), lambda v: v.sum(), x)))
    np.testing.assert_allclose(f(tw.tensor(X)).numpy(), gradient(X), rtol=1e-5)


def test_the_boundary_is_gone_after_the_passes():
    graph = tw.compile(tw.grad(lambda x: product(x, x).sum())).trace(tw.tensor(X)).graph
    text = print_graph(graph)
    assert "custom_vjp(" in text and print_graph(parse_graph(text)) == text
    assert "custom_vjp" not in print_graph(optimise(graph))


def test_without_gradients_only_the_function_runs():
    f = tw.custom_vjp(lambda x: x * 2)
    f.defvjp(lambda x: pytest.fail("forward was called"), lambda kept, g: (g,))
    assert f(tw.tensor([1.0])).tolist() == [2.0]


def test_nests_none_and_scalars():
    @tw.custom_vjp
    def f(pair, k):
        return {"sum": pair[0] * k, "index": tw.argmax(pair[1])}

    f.defvjp(lambda pair, k: (f.__wrapped__(pair, k), None), lambda kept, g: ((7.0, None), None))
    a, b = (tw.tensor(X, requires_grad=True) for _ in range(2))
    f((a, b), 3.0)["sum"].sum().backward()
    assert a.grad.tolist() == [7.0, 7.0] and b.grad is None


def rule(backward, forward=lambda x: (x * 1, None)):
    f = tw.custom_vjp(lambda x: x * 1)
    f.defvjp(forward, backward)
    return f


WRONG = {
    "count": (rule(lambda kept, g: (g, g)), GradientError, "backward returns 2 cotangents; expected one for each of 1"),
    "shape": (rule(lambda kept, g: (g[:1],)), ShapeError, r"cotangent of argument 0 has shape \(1,\); expected \(2,\)"),
    "pair": (rule(lambda kept, g: (g,), lambda x: x), GradientError, r"expected \(result, residuals\)"),
    "no rule": (tw.custom_vjp(lambda x: x), GradientError, "'<lambda>' has no rule yet; call its defvjp"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules(name):
    f, kind, message = WRONG[name]
    x = tw.tensor(X, requires_grad=True)
    with pytest.raises(kind, match=message):
        f(x).sum().backward()


def test_a_rule_is_not_part_of_a_text():
    from twofold.autodiff import gradients
    from twofold.ir import Builder, recording
    from twofold.ir.rewrite import inline

    graph = parse_graph(
        'graph f(%x: f32[2]) { %0 = custom_vjp(%x, %x) {args=1, results=1, rule="back"} : f32[2]  return %0 }'
    )
    builder = Builder("again")
    x = builder.input(graph.inputs[0].spec)
    with recording(builder), pytest.raises(GradientError, match="rule 'back' of a custom_vjp is not part of"):
        gradients(inline(graph, [x]), [x])
