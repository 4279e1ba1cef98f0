"""Compiled programs name the index that is out of range, its axis and the size, in the words that eager mode uses."""

from __future__ import annotations

import numpy as np
import pytest

import twofold as tw
import twofold.nn.functional as F
from twofold import nn
from twofold.backends.cpu.backend import CpuProgram
from twofold.base.dtypes import as_dtype
from twofold.base.errors import GraphError, IndexRangeError, TwofoldError
from twofold.ir import OPS, Builder, Spec, bind, interpret, recording

ROWS = np.zeros((2, 9), np.int64)
ROWS[1, 7] = 5


def rows(*places: int, bad: int = 4, size: int = 40, dtype: str = "int64") -> np.ndarray:
    out = np.zeros(size, dtype)
    out[list(places)] = bad
    return out


x = np.arange(12, dtype=np.float32).reshape(4, 3)
# op, operands, attributes
CASES = {
    "take": ("gather", (x, rows(17)), {"axis": 0}),
    "negative": ("gather", (x, rows(39, bad=-4)), {"axis": 1}),
    "int8": ("gather", (np.zeros((300, 2), np.float32), rows(3, bad=300, dtype="int16")), {"axis": 0}),
    "one index": ("gather", (x, np.array(9)), {"axis": 0}),
    "along": ("take_along_axis", (np.zeros((2, 5), np.float32), ROWS), {"axis": 1}),
    "points": ("gather_nd", (x, np.array([[0, 0], [1, 3]])), {}),
    "one hot": ("one_hot", (rows(5, bad=-1),), {"depth": 7, "dtype": as_dtype("float32")}),
    "of size one": ("gather", (x[:1], rows(17, bad=1)), {"axis": 0}),
    "of no rows": ("gather", (x[:0], np.zeros(3, np.int64)), {"axis": 0}),
    "along no columns": ("take_along_axis", (x[:, :0], np.zeros((4, 2), np.int64)), {"axis": 1}),
    "points of nothing": ("gather_nd", (x[:0], np.array([[0, 0]])), {}),
    "scatter to nothing": ("scatter_add", (np.ones((3, 3), np.float32), np.zeros(3, np.int64)), {"axis": 0, "size": 0}),
    "points to nothing": ("scatter_nd", (x[:0], np.array([[0, 0]]), np.ones(1, np.float32)), {}),
    "scatter": ("scatter_add", (np.ones((40, 3), np.float32), rows(30, bad=-5)), {"axis": 0, "size": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_message_is_the_references(name):
    op, arrays, attrs = CASES[name]
    builder = Builder(name)
    with recording(builder):
        inputs = [builder.input(Spec(a.shape, as_dtype(a.dtype))) for a in arrays]
        graph = builder.finish([builder.append(OPS[op], inputs, dict(attrs))])
    with pytest.raises(IndexRangeError) as wanted:
        interpret(graph, [a.copy() for a in arrays])
    program = CpuProgram(graph)
    for _ in range(2):  # the error word is cleared
        with pytest.raises(IndexRangeError) as got:
            program(list(arrays))
        assert str(got.value).splitlines()[0] == str(wanted.value).splitlines()[0]
    if 0 in arrays[0].shape or attrs.get("size") == 0:
        return  # there is no index that is right
    good = [np.zeros_like(a) if a.dtype.kind == "i" else a for a in arrays]
    np.testing.assert_array_equal(program(good)[0], interpret(graph, good)[0])


def test_the_first_check_that_fails_is_named():
    """What is computed from an element that is not there does not cover up the error."""
    f = tw.compile(lambda a, i, j: tw.take(tw.take(a, i, axis=0), j, axis=1))
    with pytest.raises(
        IndexRangeError, match=r"take: index 7 is out of range for axis 0 of size 4; expected -4 <= index < 4"
    ):
        f(tw.tensor(x), tw.tensor([0, 7]), tw.tensor([0, 1]))
    with pytest.raises(IndexRangeError, match="index 3 is out of range for axis 1 of size 3"):
        f(tw.tensor(x), tw.tensor([0, 1]), tw.tensor([0, 3]))


@pytest.mark.parametrize("op, count, wanted", [("add", 3, "2"), ("add", 1, "2"), ("exp", 2, "1"), ("where", 2, "3")])
def test_a_wrong_number_of_operands_is_an_error(op, count, wanted):
    values = [tw.tensor(x).value] * count
    with pytest.raises(GraphError, match=f"{op}: got {count} operands; expected {wanted}"):
        bind(op, *values)
    builder = Builder("b")
    inputs = [builder.input(Spec((2,), as_dtype("float32"))) for _ in range(count)]
    with pytest.raises(TwofoldError, match=f"{op}: got {count} operands"):
        builder.append(OPS[op], inputs, {})


def test_a_check_that_fails_in_what_is_prepared_once_fails_at_every_call():
    weight = nn.Parameter(tw.tensor(np.arange(10 * 8 * 9, dtype=np.float32).reshape(10, 8, 3, 3)))
    index = tw.Variable(tw.tensor(np.array([1, 20, 3])))
    inference = tw.compile(lambda x: F.conv2d(x, tw.take(weight, index, axis=0), padding=1))
    with tw.no_grad():
        for _ in range(3):
            with pytest.raises(IndexRangeError, match="index 20 is out of range"):
                inference(tw.ones((1, 8, 6, 6)))


# ---- state after an error --------------------------------------------------------------------------------------------


def _variable(*shape: int) -> tw.Variable:
    return nn.Parameter(tw.tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)))


def _classifier(loss_of=F.cross_entropy):
    """Statistics, the key of dropout and updates are written all along the step; the loss reads labels in the middle."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(16 * 16, 10),
    )  # fmt: skip
    opt = tw.optim.Adam(net.parameters(), lr=0.01)

    def step(x, y):
        loss = loss_of(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    x, labels = tw.tensor(np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)), [1, 2, 3, 4]
    return step, (x, tw.tensor(labels)), (x, tw.tensor([*labels[:3], 77]))


def _embedding():
    table, out, count = _variable(50, 16), _variable(16, 50), tw.Variable(np.array(0), name="count")
    opt = tw.optim.SGD([table, out], lr=0.1, momentum=0.9)

    def step(t):
        count.assign(count + 1)
        loss = F.cross_entropy(tw.take(table, t, axis=0) @ out, tw.tensor(np.arange(12)))
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss

    good = np.arange(12)
    return step, (tw.tensor(good),), (tw.tensor(good + 39),)


def _rows_set():
    rows = _variable(20, 8)

    def step(i, v):
        rows.assign(tw.scatter_nd(rows * 0.5, i, v))
        return tw.sum(rows)

    v = tw.ones((2, 8))
    return step, (tw.tensor([[3], [4]]), v), (tw.tensor([[5], [23]]), v * 2.0)


def _computed():
    """The index is found out from state that has a new value by then."""
    a, count = _variable(6, 6), tw.Variable(np.array(0), name="count")

    def step(x):
        a.assign(a * 0.5 + x)
        count.assign(count + 1)
        at = tw.astype(tw.sum(a) * 0.0 + tw.max(x), tw.int64)
        return tw.take(x, tw.reshape(at, (1,)), axis=0) + a[0]

    return step, (tw.ones((6, 6)),), (tw.ones((6, 6)) * 100.0,)


def _in_a_branch():
    a = _variable(6, 6)

    def step(x, i):
        a.assign(a * 0.5 + x)
        return tw.cond(tw.sum(x) > 0, lambda: tw.take(x, i, axis=0) * 2.0, lambda: tw.take(x, i, axis=0))

    return step, (tw.ones((6, 6)), tw.tensor([5])), (tw.ones((6, 6)), tw.tensor([6]))


@pytest.mark.parametrize("make", [_classifier, _embedding, _rows_set, _computed, _in_a_branch])
def test_who_catches_the_error_goes_on_with_the_state_as_it_was(make):
    tw.random.seed(0)
    step, good, bad = make()
    compiled = tw.compile(step)
    compiled(*good)
    state = compiled.trace(*good).variables
    for _ in range(2):
        before = [v.numpy().copy() for v in state]
        with pytest.raises(IndexRangeError):
            compiled(*bad)
        for v, old in zip(state, before):
            np.testing.assert_array_equal(v.numpy(), old)
        compiled(*good)
        assert any((v.numpy() != old).any() for v, old in zip(state, before))


def test_state_is_as_it_was_if_what_is_done_once_fails():
    a, table, index = _variable(6, 6), _variable(9, 40), tw.Variable(np.array([3]), name="index")

    @tw.compile
    def step(x):
        a.assign(a + x)
        return tw.sum(tw.take(table, index, axis=0) * 2.0)

    step(tw.ones((6, 6)))
    before = a.numpy().copy()
    index.assign(tw.tensor([9]))
    with pytest.raises(IndexRangeError):
        step(tw.ones((6, 6)))
    np.testing.assert_array_equal(a.numpy(), before)


def test_what_has_nothing_to_do_with_a_check_is_still_written_in_place():
    def overwritten(loss_of):
        step, good, _ = _classifier(loss_of)
        compiled = tw.compile(step)
        compiled(*good)
        return len(compiled._program(good, {}).donated)

    assert overwritten(F.cross_entropy) == overwritten(lambda logits, y: tw.mean(tw.square(logits))) > 0
