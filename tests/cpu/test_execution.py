"""Calls of native programs: who runs them, and what is remembered of buffers between calls."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import twofold as tw
from twofold import nn
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.program import ALONE, AWAKE, TEAM
from twofold.ir import Builder, Spec
from twofold.ir.op import OPS

RNG = np.random.default_rng(11)


def compiled(f, *args):
    """The compiled function, called once, and its only program."""
    g = tw.compile(f)
    with tw.no_grad():
        g(*args)
    (program,) = (c.program for es in g._entries.values() for e in es for c in e.runner.programs.values())
    return g, program


@pytest.mark.parametrize(("batch", "crew"), [(1, AWAKE), (64, TEAM)])
def test_little_work_does_not_wake_the_team_and_gives_the_same_bits(batch, crew):
    with tw.device("cpu"), tw.no_grad():
        model = tw.zoo.create("lenet5").eval()
        x = tw.tensor(RNG.standard_normal((batch, 1, 32, 32)).astype(np.float32))
        f, program = compiled(model, x)
        segments = program._built.segments
        assert [s.crew for s in segments] == [crew] * len(segments)
        first = f(x).numpy().copy()
        for other in ALONE, AWAKE, TEAM:
            for segment in segments:
                segment.crew = other
            for _ in range(3):
                np.testing.assert_array_equal(f(x).numpy(), first)


def test_next_to_no_work_is_the_callers():
    _, program = compiled(lambda x: x + 1.0, tw.ones((8,)))
    assert [s.crew for s in program._built.segments] == [ALONE]


def test_buffers_that_come_again_change_or_are_not_dense():
    builder = Builder("f")
    a, b = (builder.input(Spec((4, 6), tw.float32), name) for name in "ab")
    program = CpuProgram(builder.finish([builder.append(OPS["subtract"], [a, b], {})]))
    x, y = (RNG.standard_normal((4, 6)).astype(np.float32) for _ in range(2))
    strided = RNG.standard_normal((6, 4)).astype(np.float32).T
    frozen = x.copy()
    frozen.setflags(write=False)
    for left, right in [(x, y), (x, y), (y, x), (strided, y), (strided, y), (frozen, y), (x, strided), (x, x)]:
        (got,) = program([left, right])
        np.testing.assert_array_equal(got, left - right)
    x[:] = 7.0  # the same buffer with other numbers
    np.testing.assert_array_equal(program([x, y])[0], 7.0 - y)
    del x
    for _ in range(20):  # memory given back and taken again, perhaps at the same address
        z = RNG.standard_normal((4, 6)).astype(np.float32)
        np.testing.assert_array_equal(program([z, y])[0], z - y)


def test_results_of_earlier_calls_stay():
    f, _ = compiled(lambda x: x + 1.0, tw.ones((8,)))
    first = f(tw.zeros((8,)))
    f(tw.ones((8,)))
    np.testing.assert_array_equal(first.numpy(), np.ones(8))


def test_as_many_results_as_one_likes_stay():
    f, _ = compiled(lambda x: x + 1.0, tw.ones((8,)))
    results = [f(tw.full((8,), float(i))) for i in range(12)]
    views = [f(tw.full((8,), float(i))).numpy()[2:] for i in range(12)]
    for i, (result, view) in enumerate(zip(results, views)):
        np.testing.assert_array_equal(result.numpy(), np.full(8, i + 1.0))
        np.testing.assert_array_equal(view, np.full(6, i + 1.0))


def test_calls_that_follow_each_other_read_the_state_as_it_is():
    weight, bias = tw.Variable(np.ones((300, 300), np.float32)), tw.Variable(np.zeros(300, np.float32))
    f = tw.compile(lambda x: x @ weight + bias)
    for number in range(6):
        for _ in range(3):
            x = tw.tensor(np.full((4, 300), number, np.float32))
            np.testing.assert_array_equal(f(x).numpy(), 300.0 * number * weight.numpy()[0, 0] + bias.numpy()[0])
        bias.assign(tw.full((300,), number + 1.0))
        if number % 2:
            weight.assign(tw.full((300, 300), number + 2.0))
        gc.collect()
        junk = [np.full(300 * 300, -1.0, np.float32) for _ in range(4)]  # where old numbers were
        del junk


def test_calls_that_follow_each_other_take_arguments_that_are_not_dense():
    f, _ = compiled(lambda x: x * 2.0, tw.ones((8, 4)))
    for number in range(4):
        x = tw.tensor(np.full((4, 8), number, np.float32)).T
        np.testing.assert_array_equal(f(x).numpy(), np.full((8, 4), 2.0 * number))


def test_a_step_that_trains_may_overwrite_what_inference_has_seen():
    weight = tw.Variable(np.ones((64, 64), np.float32))
    look = tw.compile(lambda x: x @ weight)

    @tw.compile
    def step():
        weight.assign(weight * 2.0)

    x = tw.ones((2, 64))
    for number in range(4):
        for _ in range(2):
            np.testing.assert_array_equal(look(x).numpy(), np.full((2, 64), 64.0 * 2**number))
        before = weight.value.buffer.ctypes.data
        step()
        if number:  # the first buffer is the caller's
            assert weight.value.buffer.ctypes.data == before


def test_quick_calls_tell_apart_what_a_trace_depends_on():
    dropout = nn.Dropout(0.5)
    f = tw.compile(lambda x: dropout(x) * 2.0)
    x = tw.ones((64,))
    for _ in range(2):
        dropout.eval()
        np.testing.assert_array_equal(f(x).numpy(), np.full(64, 2.0))
        dropout.train()
        assert (f(x).numpy() == 0.0).any()
    dropout.eval()
    assert f(tw.ones((3,))).shape == (3,)
    assert f(tw.ones((64,), dtype=tw.float64)).dtype is tw.float64
    tracked = tw.ones((64,)).requires_grad_()
    assert f(tracked).requires_grad and not f(x).requires_grad
    with tw.no_grad():
        assert not f(tracked).requires_grad
