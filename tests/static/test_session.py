"""Graphs with placeholders, and sessions."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw


def ones(*shape):
    return np.ones(shape, np.float32)


def test_any_batch_size_and_only_what_is_needed():
    with tw.Graph() as g:
        x = tw.placeholder((None, 3), tw.float32, "x")
        y = tw.placeholder((None, 3), tw.float32, "y")
        total, mean = x.sum(), (x * y).mean(axis=0)
    s = tw.Session(g)
    assert s.run(total, {x: ones(2, 3)}) == 6.0
    assert s.run([total], {"x": ones(5, 3)}) == [15.0]
    np.testing.assert_array_equal(s.run({"m": mean}, {x: ones(4, 3), y: 2 * ones(4, 3)})["m"], [2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("fetch", "feed", "message"),
    [
        ("mean", {"x": ones(2, 3)}, "placeholder 'y' is needed by the fetches and was not fed"),
        ("mean", {"x": ones(2, 3), "y": ones(3, 3)}, r"input 'y' has shape \(3, 3\), expected \(N, 3\) where N = 2"),
        ("total", {"x": ones(2, 4)}, r"input 'x' has shape \(2, 4\), expected \(N, 3\)"),
        ("total", {"x": ones(2, 3).astype(np.float64)}, "input 'x' has dtype float64, expected float32"),
        ("total", {"q": 1.0}, "feed_dict: 'q' is not a placeholder of this graph"),
    ],
)
def test_feeding_mistakes_are_explained(fetch, feed, message):
    with tw.Graph() as g:
        x = tw.placeholder((None, 3), tw.float32, "x")
        y = tw.placeholder((None, 3), tw.float32, "y")
        fetches = {"total": x.sum(), "mean": (x * y).mean()}
    with pytest.raises(tw.TwofoldError, match=message):
        tw.Session(g).run(fetches[fetch], feed)


def test_assignments_take_effect_when_they_are_fetched():
    w = tw.Variable(np.array([3.0, 4.0], np.float32), requires_grad=True, name="w")
    with tw.Graph() as g:
        x = tw.placeholder((None, 2), tw.float32, "x")
        loss = ((x * w) ** 2).sum()
        (slope,) = tw.gradients(loss, [w])
        update = w.assign(w - slope * 0.1)
    s = tw.Session(g)
    assert s.run(loss, {x: ones(1, 2)}) == 25.0 and w.tolist() == [3.0, 4.0]
    before, after = s.run([loss, update], {x: ones(1, 2)})
    assert before == 25.0
    np.testing.assert_allclose(after, w.numpy())
    np.testing.assert_allclose(w.numpy(), [2.4, 3.2], rtol=1e-6)
    s.run(g.updates, {x: ones(1, 2)})
    np.testing.assert_allclose(w.numpy(), [1.92, 2.56], rtol=1e-6)


def test_named_sizes_keep_sizes_apart():
    with tw.Graph() as g:
        a = tw.placeholder(("N", "K"), name="a")
        b = tw.placeholder(("K", "M"), name="b")
        product = a @ b
    assert str(product.shape) == "(N, M)"
    assert tw.Session(g).run(product, {a: ones(2, 3), b: ones(3, 4)}).tolist() == [[3.0] * 4] * 2


def test_a_mean_over_an_unknown_batch_divides_by_the_size_that_comes():
    with tw.Graph() as g:
        x = tw.placeholder((None, 2), name="x")
        (slope,) = tw.gradients(x.mean(), [x])
    for n in (1, 4):
        np.testing.assert_allclose(tw.Session(g).run(slope, {x: ones(n, 2)}), np.full((n, 2), 1 / (2 * n)), rtol=1e-6)


def test_placeholders_need_a_graph_and_unique_names():
    with pytest.raises(tw.GraphError, match="no graph is being built"):
        tw.placeholder((1,))
    with tw.Graph():
        tw.placeholder((1,), name="x")
        with pytest.raises(tw.GraphError, match="names are unique"):
            tw.placeholder((1,), name="x")


def test_a_graph_entered_again_can_be_added_to():
    with tw.Graph() as g:
        x = tw.placeholder((None,), name="x")
    with g:
        y = x + 1.0
    z = y * 2.0  # outside the block: goes to the graph of its operand
    assert tw.Session(g).run(z, {x: [1.0, 2.0]}).tolist() == [4.0, 6.0]


def test_a_tensor_of_another_graph_is_refused():
    with tw.Graph():
        x = tw.placeholder((1,), name="x")
    with tw.Graph() as other:
        tw.placeholder((1,), name="y")
    with pytest.raises(tw.GraphError, match="not a tensor of this graph"):
        tw.Session(other).run(x, {})


def test_random_numbers_advance_from_run_to_run():
    tw.random.seed(1)
    with tw.Graph() as g:
        noise = tw.random.uniform((4,))
    s = tw.Session(g)
    first, second = s.run(noise), s.run(noise)
    assert not np.array_equal(first, second)
