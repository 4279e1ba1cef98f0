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
