"""Control flow: cond, while_loop and scan, eager and recorded, their gradients to second order against JAX, variables
and random numbers inside, and the errors."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold import ops
from twofold.autodiff import gradients
from twofold.base.dtypes import as_dtype, float32, float64, int64
from twofold.base.errors import ArgumentError, DtypeError, GraphError, ShapeError
from twofold.ir import OPS, Builder, Graph, Spec, bind, interpret, recording
from twofold.ir.text import parse_graph, print_graph
from twofold.ir.verify import verify
from twofold.ops import control
from twofold.ops import elementwise as e
from twofold.ops.reduction import sum as total
from twofold.passes import optimise

jax = pytest.importorskip("jax")
jnp = jax.numpy

RNG = np.random.default_rng(5)
X, W, XS = RNG.normal(size=3), RNG.normal(size=3), RNG.normal(size=(4, 3))


# ---- gradients to second order: value, gradient, gradient of the weighted squared gradient ---------------------------


def derivatives(f, *arrays: np.ndarray) -> Graph:
    """A graph of f, its gradients, and the gradients of a function of those."""
    builder = Builder("derivatives")
    xs = [builder.input(Spec(a.shape, as_dtype(a.dtype)), f"x{i}") for i, a in enumerate(arrays)]
    with recording(builder):
        y = f(*xs)
        outputs = [y]
        for _ in range(2):
            found = gradients([y], xs)
            gs = [ops.full(x.shape, 0.0, x.dtype) if g is None else g for g, x in zip(found, xs)]
            outputs += gs
            y = ops.constant(0.0, float64)
            for k, g in enumerate(gs):
                y = y + total(g * g * (k + 1.0))
    return verify(builder.finish(outputs))


def jax_derivatives(f, *arrays: np.ndarray) -> list[np.ndarray]:
    places = tuple(range(len(arrays)))
    first = jax.grad(f, places)
    second = jax.grad(lambda *a: sum(jnp.sum(g * g * (k + 1.0)) for k, g in enumerate(first(*a))), places)
    return [f(*arrays), *first(*arrays), *second(*arrays)]


def choose(x, w):
    return total(control.cond(e.greater(total(x), 0), lambda a: a * a * w, lambda a: e.sin(a) + w * w * w, x))


def jax_choose(x, w):
    return jnp.sum(jax.lax.cond(jnp.sum(x) > 0, lambda a: a * a * w, lambda a: jnp.sin(a) + w**3, x))


def along(reverse):
    def f(x, w, xs):
        c, ys = control.scan(lambda c, v: (e.sin(c) * v + w, c * v * w), x, xs, reverse=reverse)
        return total(c * c) + total(ys * ys * ys)

    def g(x, w, xs):
        c, ys = jax.lax.scan(lambda c, v: (jnp.sin(c) * v + w, c * v * w), x, xs, reverse=reverse)
        return jnp.sum(c * c) + jnp.sum(ys**3)

    return f, g


def until(limit):
    """A loop of a number of steps that depends on the data; JAX gets it unrolled."""

    def f(x, w):
        start = (x, ops.constant(0, int64))
        step = lambda s: (s[0] * 1.5 + e.sin(w * s[0]), s[1] + 1)
        c, _ = control.while_loop(lambda s: e.less(total(s[0] * s[0]), 20.0), step, start, limit)
        return total(c * c * w)

    steps, c = 0, X
    while (c * c).sum() < 20 and steps != limit:
        c, steps = c * 1.5 + np.sin(W * c), steps + 1

    def g(x, w):
        for _ in range(steps):
            x = x * 1.5 + jnp.sin(w * x)
        return jnp.sum(x * x * w)

    assert steps > 1
    return f, g


def nested():
    def f(x, w, xs):
        def step(c, v):
            c = control.cond(e.greater(total(v), 0), lambda a: a * v, lambda a: a + w, c)
            c = control.while_loop(lambda s: e.less(total(s * s), 1.0), lambda s: s * 2.0 + w * 0.1, c, 3)
            return c, c * w

        c, ys = control.scan(step, x, xs)
        return total(c * c) + total(ys)

    def g(x, w, xs):
        def step(c, v):
            c = jax.lax.cond(jnp.sum(v) > 0, lambda a: a * v, lambda a: a + w, c)
            for _ in range(3):
                c = jnp.where(jnp.sum(c * c) < 1.0, c * 2.0 + w * 0.1, c)
            return c, c * w

        c, ys = jax.lax.scan(step, x, xs)
        return jnp.sum(c * c) + jnp.sum(ys)

    return f, g


PROGRAMS = {
    "cond, true": (choose, jax_choose, (np.abs(X), W)),
    "cond, false": (choose, jax_choose, (-np.abs(X), W)),
    "scan": (*along(False), (X, W, XS)),
    "scan, reverse": (*along(True), (X, W, XS)),
    "while, unbounded": (*until(None), (X, W)),
    "while, bound not reached": (*until(12), (X, W)),
    "while, bound reached": (*until(2), (X, W)),
    "nested": (*nested(), (X, W, XS)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_second_order_against_jax(name):
    ours, theirs, arrays = PROGRAMS[name]
    graph = derivatives(ours, *arrays)
    with jax.enable_x64(True):
        expected = jax.jit(lambda *a: jax_derivatives(theirs, *a))(*arrays)
    read = parse_graph(print_graph(graph, full=True))
    for version in (graph, optimise(graph), read):
        for found, right in zip(interpret(version, arrays), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cond", "while_loop", "scan"])
def test_samples_of_the_ops(name):
    """The record's own samples: infer agrees with ref, and the gradients with central differences, also when the op
    itself is applied to concrete values."""
    op = OPS[name]
    for sample in op.samples():
        specs = op.specs(tuple(Spec(a.shape, as_dtype(a.dtype)) for a in sample.inputs), sample.attrs)
        results = op.ref(*sample.inputs, **sample.attrs)
        assert [Spec(r.shape, as_dtype(r.dtype)) for r in results] == list(specs)
        tw.autodiff.check(
            lambda *xs, op=op, sample=sample: [tw.Tensor(v) for v in bind(op, *(x.value for x in xs), **sample.attrs)],
            sample.inputs,
        )


# ---- one program, eager and compiled ---------------------------------------------------------------------------------


def test_variables_and_random_numbers_inside():
    """Statistics are assigned, random numbers drawn and parameters used in every construct; both lives agree."""
    w = tw.Variable(np.ones(3, np.float32), requires_grad=True, name="w")
    count = tw.Variable(np.zeros((), np.float32), name="count")

    def program(x):
        def one(a):
            count.assign(count + 1)
            return a * w

        y = tw.cond(x.sum() > 0, one, lambda a: a + w * w, x)

        def body(c, i):
            count.assign(count + 10)
            return c * 0.5 + w * 0.1 + 0.01 * tw.random.uniform((3,)), i + 1

        c, i = tw.while_loop(lambda c, i: (c * c).sum() > 0.1, body, (y, tw.tensor(0)), max_iterations=6)

        def step(c, v):
            count.assign(count + 100)
            return c * v + w, c + tw.random.uniform((3,))

        c, ys = tw.scan(step, c, tw.stack([y, x, x]))
        loss = (c * c).sum() + ys.sum()
        loss.backward()
        return loss, i

    for sign in (1.0, -1.0):
        seen = []
        for run in (program, tw.compile(program)):
            w.grad = None
            count.assign(0.0)
            tw.random.seed(3)
            loss, i = run(tw.tensor([sign, 0.5, -0.2]))
            seen.append((float(loss), int(i), float(count), w.grad.numpy(), tw.random.get_state()))
        for a, b in zip(*seen):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert seen[0][2] == 300 + 60 + (sign > 0)


def test_a_training_loop_inside_a_scan():
    """backward and assign inside the body: gradient descent as one op."""
    w = tw.Variable(np.zeros(2, np.float32), requires_grad=True, name="w")

    def train(xs):
        def step(carry, x):
            loss = ((w - x) ** 2).sum()
            (g,) = tw.gradients(loss, [w])
            w.assign(w - 0.25 * g)
            return carry, loss

        return tw.scan(step, tw.tensor(0.0), xs)[1]

    data = np.float32([[1, 2], [1, 2], [3, 4]])
    results = []
    for run in (train, tw.compile(train)):
        w.assign(np.zeros(2, np.float32))
        results.append((run(tw.tensor(data)).numpy(), w.numpy().copy()))
    expected, losses = np.zeros(2), []
    for x in data:
        losses.append(((expected - x) ** 2).sum())
        expected = expected - 0.5 * (expected - x)
    for found_losses, found in results:
        np.testing.assert_allclose(found_losses, losses, rtol=1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_earlier_value_of_an_assigned_variable_stays():
    """A loop that assigns a variable, and reads the value it had before the loop, sees both."""
    v = tw.Variable(np.float32(1.0), name="v")

    def program(x):
        before = tw.Tensor(v.value)

        def body(c):
            v.assign(v * 2)
            return c + before

        return tw.while_loop(lambda c: c < 4, body, x)

    results = []
    for run in (program, tw.compile(program)):
        v.assign(1.0)
        results.append((float(run(tw.tensor(0.0))), float(v)))
    assert results == [(4.0, 16.0)] * 2


def test_nests_and_argument_styles():
    for mode in (lambda f: f, tw.compile):
        f = mode(lambda x: tw.cond(x > 0, lambda a: {"y": a, "z": (a, [a * 2])}, lambda a: {"y": -a, "z": (a, [a])}, x))
        out = f(tw.tensor(3.0))
        assert float(out["y"]) == 3 and float(out["z"][1][0]) == 6
        g = mode(lambda x: tw.while_loop(lambda x, n: x < 50, lambda x, n: (x * 2, n + 1), (x, tw.tensor(0)))[1])
        assert int(g(tw.tensor(1.0))) == 6
        h = mode(lambda x: tw.scan(lambda c, _: (c * 2, None), x, length=5)[0])
        assert float(h(tw.tensor(1.0))) == 32
        k = mode(lambda xs: tw.scan(lambda c, x: (c + x, {"sum": c}), tw.tensor(0.0), xs)[1]["sum"])
        assert k(tw.tensor(np.zeros(0, np.float32))).shape == (0,)


def test_eager_branches_are_plain_python():
    """Only the branch taken runs, and gradients are those of the ops that ran."""
    ran = []

    def branch(name, factor):
        def run(a):
            ran.append(name)
            return a * factor

        return run

    x = tw.tensor(2.0, requires_grad=True)
    tw.cond(x > 1, branch("true", 3.0), branch("false", 5.0), x).backward()
    assert ran == ["true"] and x.grad.item() == 3.0


# ---- errors ----------------------------------------------------------------------------------------------------------

F = Spec((2,), float32)


def record(f):
    builder = Builder("f")
    x = builder.input(F, "x")
    with recording(builder):
        f(x)


def flag():
    return ops.constant(True)


ERRORS = {
    "predicate": (lambda x: control.cond(x > 0, lambda: x, lambda: x), DtypeError,
                  r"predicate is bool\[2\].*\.any\(\)"),
    "predicate dtype": (lambda x: control.cond(total(x), lambda: x, lambda: x), DtypeError,
                        r"f32\[\]; expected a single"),
    "structure": (lambda x: control.cond(flag(), lambda: (x, x), lambda: [x]), GraphError,
                  r"false_fn gives result\[0\]; true_fn gives result\[0\], result\[1\]"),
    "shape": (lambda x: control.cond(flag(), lambda: {"a": x}, lambda: {"a": total(x)}), GraphError,
              r"result\['a'\] is f32\[\] in false_fn and f32\[2\] in true_fn"),
    "dtype": (lambda x: control.cond(flag(), lambda: x, lambda: ops.cast(x, "float64")), GraphError,
              "f64.*cast or reshape"),
    "carry": (lambda x: control.while_loop(lambda c: total(c) > 0, lambda c: total(c), x), GraphError,
              r"result is f32\[\] in body_fn and f32\[2\] in init"),
    "condition": (lambda x: control.while_loop(lambda c: c > 0, lambda c: c, x), DtypeError, "result of cond_fn"),
    "bound": (lambda x: control.while_loop(lambda c: c > 0, lambda c: c, x, -1), ArgumentError, "max_iterations=-1"),
    "pair": (lambda x: control.scan(lambda c, v: c, x, x), GraphError, r"expected a pair \(carry, y\)"),
    "scan carry": (lambda x: control.scan(lambda c, v: (v, c), x, x), GraphError, "f's carry"),
    "lengths": (lambda x: control.scan(lambda c, v: (c, c), x, {"a": x, "b": ops.full((3,), 0.0)}), ShapeError,
                r"xs\['b'\] is f32\[3\]; expected 2"),
    "scalar xs": (lambda x: control.scan(lambda c, v: (c, c), x, total(x)), ShapeError, "at least one dimension"),
    "no length": (lambda x: control.scan(lambda c, v: (c, c), x), ArgumentError, "length must be given"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_teach(name):
    f, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        record(f)


def test_a_condition_may_not_assign():
    v = tw.Variable(np.float32(0.0), name="calls")

    def condition(c):
        v.assign(v + 1)
        return c < 3

    with pytest.raises(GraphError, match="cond_fn assigns calls"):
        tw.compile(lambda x: tw.while_loop(condition, lambda c: c + 1, x))(tw.tensor(0.0))


# ---- symbolic sizes and sessions -------------------------------------------------------------------------------------


def test_a_scan_along_an_unknown_size_in_a_session():
    """The recurrence runs along the placeholder's unknown batch dimension; gradients are built outside any recording."""
    with tw.Graph() as g:
        xs = tw.placeholder((None, 2), "float64", name="xs")
        w = tw.placeholder((2,), "float64", name="w")
        c, ys = tw.scan(lambda c, x: (c * w + x, c), tw.zeros(2, dtype=tw.float64), xs)
        loss = (c * c).sum() + ys.sum()
        grad_xs, grad_w = tw.gradients(loss, [xs, w])

    def reference(xs, w):
        c, ys = jax.lax.scan(lambda c, x: (c * w + x, c), jnp.zeros(2), xs)
        return (c * c).sum() + ys.sum()

    for n in (1, 4):
        data, weights = XS[:n, :2], W[:2]
        found = tw.Session(g).run([loss, grad_xs, grad_w], {xs: data, w: weights})
        with jax.enable_x64(True):
            expected = (reference(data, weights), *jax.grad(reference, (0, 1))(data, weights))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


BARE = {
    "cond": lambda x, w: tw.cond(x.sum() < 1, lambda: x * 2, lambda: x),
    "cond, other branch": lambda x, w: tw.cond(x.sum() > 1, lambda: (x, w), lambda: (x * w, w * 3))[1],
    "cond, both": lambda x, w: tw.cond(x.sum() < 1, lambda: x, lambda: w) * x,
    "cond, argument beside": lambda x, w: tw.cond(x.sum() < 1, lambda y: w, lambda y: y * w, x * x),
    "cond in cond": lambda x, w: tw.cond(x.sum() < 1, lambda: tw.cond(w.sum() < 9, lambda: x, lambda: w * x), lambda: w),
    "scan, y": lambda x, w: tw.scan(lambda c, v: (c * v, w), x.sum(), x)[1],
    "scan, carry": lambda x, w: tw.scan(lambda c, v: (w, c * v), w * 2, x)[1],
    "while": lambda x, w: tw.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, w), (tw.tensor(0), x * x), 5)[1] * x,
}  # fmt: skip


@pytest.mark.parametrize("name", BARE)
def test_a_branch_may_return_what_it_found_outside(name):
    """Unchanged: it is then an input of the branch, and gradients go to it."""
    f = BARE[name]
    found = []
    for run in (f, tw.compile(f)):
        x = tw.tensor(np.linspace(-1, 1, 4).astype(np.float32), requires_grad=True)
        w = tw.tensor(np.linspace(0.5, 2, 4).astype(np.float32), requires_grad=True)
        y = run(x, w)
        (y * y).sum().backward()
        found.append([np.zeros(4) if v is None else v.numpy() for v in (y, x.grad, w.grad)])
    for got, want in zip(found[1], found[0]):
        np.testing.assert_allclose(got, want, rtol=1e-6)
