"""Random numbers: known answers, repeatability in both modes, distributions."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.ir import OPS


@pytest.fixture(autouse=True)
def seeded():
    before = tw.random.get_state()
    tw.random.seed(5)
    yield
    tw.random.set_state(before)


DRAWS = {
    "uniform": lambda: tw.random.uniform((3, 5)),
    "uniform64": lambda: tw.random.uniform((7,), -2.0, 3.0, dtype=tw.float64),
    "normal": lambda: tw.random.normal((4, 3), 1.0, 2.0),
    "bernoulli": lambda: tw.random.bernoulli(0.3, (20,)),
    "randint": lambda: tw.random.randint(-3, 9, (20,)),
    "permutation": lambda: tw.random.permutation(9),
}


def test_known_bits():
    """Philox4x32-10 of counter 0 and key 0 (the published known-answer test)."""
    bits = OPS["random_bits"].ref(np.zeros(4, np.uint32), shape=(4,))
    assert [f"{b:08x}" for b in bits] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_repeats_and_draws_differ(name):
    first, second = DRAWS[name]().numpy(), DRAWS[name]().numpy()
    tw.random.seed(5)
    np.testing.assert_array_equal(DRAWS[name]().numpy(), first)
    assert (first != second).any()


@pytest.mark.parametrize("name", DRAWS)
def test_a_program_draws_what_an_eager_run_would(name):
    eager = [DRAWS[name]().numpy() for _ in range(3)]
    state = tw.random.get_state()
    tw.random.seed(5)
    compiled = tw.compile(DRAWS[name])
    for expected in eager:
        np.testing.assert_allclose(compiled().numpy(), expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(tw.random.get_state(), state)


def test_a_state_can_be_kept_and_restored():
    tw.random.uniform((3,))
    state = tw.random.get_state()
    first = tw.random.normal((5,)).numpy()
    tw.random.set_state(state)
    np.testing.assert_array_equal(tw.random.normal((5,)).numpy(), first)
    with pytest.raises(ShapeError, match="get_state"):
        tw.random.set_state([1, 2])


def test_distributions():
    n = 60_000
    u = tw.random.uniform((n,)).numpy()
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002
    z = tw.random.normal((n,)).numpy()
    assert (
        abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and abs((z**3).mean()) < 0.05 and abs((z**4).mean() - 3) < 0.15
    )
    assert abs(tw.random.bernoulli(0.3, (n,)).numpy().mean() - 0.3) < 0.01
    counts = np.bincount(tw.random.randint(0, 6, (n,)).numpy(), minlength=6)
    assert counts.size == 6 and abs(counts / n - 1 / 6).max() < 0.01
    assert sorted(tw.random.permutation(100).tolist()) == list(range(100))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_uniform_never_reaches_one(dtype):
    u = tw.random.uniform((20_000,), dtype=dtype)
    assert u.dtype == dtype and float(tw.max(u)) < 1.0 and float(tw.min(u)) >= 0.0


@pytest.mark.parametrize("probability, expected", [(0.0, 0), (1.0, 100)])
def test_certain_events(probability, expected):
    assert int(tw.random.bernoulli(probability, (100,)).numpy().sum()) == expected


def test_errors_teach():
    with pytest.raises(ArgumentError, match=r"probability 1.5; expected a number in \[0, 1\]"):
        tw.random.bernoulli(1.5, (3,))
    with pytest.raises(ArgumentError, match="low=3, high=3"):
        tw.random.randint(3, 3, (2,))
    with pytest.raises(DtypeError, match="int32"):
        tw.random.uniform((3,), dtype="int32")
