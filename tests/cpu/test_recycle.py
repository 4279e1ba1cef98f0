"""Recycled memory: whoever can still see an array sees its numbers, however it came by it."""

from __future__ import annotations

import gc
import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import twofold as tw
from twofold.backends.cpu import recycle
from twofold.backends.cpu.recycle import LEAST, LINE, Pool

FLOAT = np.dtype(np.float32)
LOOKS = {  # ways to hold memory without holding the array that was given out; each gives an array of the same numbers
    "array": lambda a: a,
    "reshaped": lambda a: a.reshape(1, -1, 1),
    "a view of a view": lambda a: a[1:][1:],
    "reversed": lambda a: a[::-1],
    "read-only": lambda a: np.lib.stride_tricks.as_strided(a, writeable=False),
    "other dtype": lambda a: a.view(np.int32),
    "memoryview": memoryview,
    "DLPack": lambda a: np.from_dlpack(a),
    "frombuffer": lambda a: np.frombuffer(a, np.uint8),
    "tensor": lambda a: tw.from_dlpack(a),
}
SIZES = st.integers(LEAST // 4 - 100, LEAST // 4 + 20_000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            SIZES, st.sampled_from(sorted(LOOKS)), st.integers(0, 7), st.sampled_from(["keep", "drop", "release"])
        ),
        max_size=40,
    )
)
def test_what_is_held_is_never_given_out_again(steps):
    pool, held = Pool(), {}
    for number, (size, look, place, then) in enumerate(steps):
        array = pool.empty((size,), FLOAT)
        array.fill(number)
        seen = LOOKS[look](array)
        held[place] = seen, np.array(seen)  # what was there before is dropped
        if then == "drop":
            held.pop((place + 1) % 8, None)
        elif then == "release":
            pool.release()
        del array, seen
        for alive, numbers in held.values():
            np.testing.assert_array_equal(np.asarray(alive), numbers)


@given(st.lists(st.tuples(st.sampled_from(sorted(LOOKS)), st.integers(0, 7), st.booleans()), max_size=40))
def test_small_results_that_are_held_are_never_given_out_again(steps):
    make, held = Pool().maker((6,), FLOAT), {}
    for number, (look, place, drops) in enumerate(steps):
        array, address = make()
        assert array.ctypes.data == address
        array.fill(number)
        seen = LOOKS[look](array)
        held[place] = seen, np.array(seen)
        if drops:
            held.pop((place + 1) % 8, None)
        del array, seen
        for alive, numbers in held.values():
            np.testing.assert_array_equal(np.asarray(alive), numbers)


def test_small_results_that_nobody_sees_serve_again():
    make = Pool().maker((6,), FLOAT)
    assert len({make()[1] for _ in range(8)}) == 1


def test_memory_that_nobody_sees_serves_again_and_begins_at_a_cache_line():
    pool = Pool()
    first = pool.empty((LEAST, 3), FLOAT)
    address, total = first.ctypes.data, pool.nbytes
    assert address % LINE == 0
    assert first.flags.c_contiguous and first.flags.writeable
    second = pool.empty((LEAST, 3), FLOAT)
    assert second.ctypes.data != address
    del first
    assert pool.empty((3, LEAST), FLOAT).ctypes.data == address
    assert pool.nbytes == 2 * total


def test_what_is_not_used_is_given_back(monkeypatch):
    pool, now = Pool(), [1000.0]
    monkeypatch.setattr(recycle.time, "monotonic", lambda: now[0])
    kept = pool.empty((LEAST,), FLOAT)
    pool.empty((LEAST, 2), FLOAT)
    now[0] += recycle.IDLE / 2
    pool.empty((LEAST, 4), FLOAT)
    now[0] += recycle.IDLE * 0.8
    pool.empty((LEAST, 8), FLOAT)  # looks: the second has been idle long enough, the third has not
    assert sorted(pool._blocks) == [4 * LEAST, 16 * LEAST, 32 * LEAST]
    pool.release()
    assert list(pool._blocks) == [4 * LEAST]
    kept.fill(1)


def test_a_crowd_of_blocks_is_given_back_though_one_of_their_size_is_in_use(monkeypatch):
    pool, now = Pool(), [1000.0]
    monkeypatch.setattr(recycle.time, "monotonic", lambda: now[0])
    crowd = [pool.empty((LEAST,), FLOAT) for _ in range(20)]
    del crowd
    for _ in range(20):
        now[0] += recycle.IDLE / 2
        pool.empty((LEAST,), FLOAT)
    assert len(pool._blocks[4 * LEAST]) == 1


def test_threads_never_get_the_same_memory():
    pool, wrong = Pool(), []

    def work(number: int) -> None:
        for _ in range(300):
            a, b = pool.empty((LEAST,), FLOAT), pool.empty((LEAST,), FLOAT)
            a[::997], b[::997] = number, -number
            if (a[::997] != number).any() or (b[::997] != -number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len(pool._blocks[4 * LEAST]) <= 4 * 4  # each thread sees two arrays, and two that it is about to forget


def test_results_of_eager_ops_outlive_their_tensors():
    x = np.random.default_rng(0).standard_normal((4, 16, 48, 48)).astype(np.float32)
    w = np.full((16, 16, 1, 1), 0.5, np.float32)
    make = lambda k: tw.nn.functional.conv2d(tw.tensor(x) * k, tw.tensor(w))
    expected = make(1.0).numpy().copy()
    view, shared, sliced = make(1.0).numpy(), np.from_dlpack(make(1.0)), make(1.0)[:, 3].numpy()
    for k in range(2, 8):
        make(float(k))
    gc.collect()
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(shared, expected)
    np.testing.assert_array_equal(sliced, expected[:, 3])


def test_new_gradients_of_a_step_lie_where_those_lay_that_nobody_kept():
    w = tw.Variable(np.ones((300, 300), np.float32), requires_grad=True)

    @tw.compile
    def step(x):
        w.grad = None
        (w * w * x).sum().backward()

    with tw.device("cpu"):
        places, kept = [], None
        for factor in (1.0, 2.0, 3.0, 4.0, 5.0):
            step(tw.tensor(factor))
            places.append(w.grad.numpy().ctypes.data)
            if factor == 3.0:
                kept = w.grad
        assert places[0] == places[1] == places[2] != places[3] == places[4]
        assert float(kept[0, 0]) == 6.0 and float(w.grad[0, 0]) == 10.0
