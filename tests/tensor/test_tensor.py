"""Tensors as arrays: indexing against NumPy, promotion, exchange with other libraries, and errors that teach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import twofold as tw

X = np.arange(60.0).reshape(3, 4, 5)


@settings(max_examples=150, deadline=None)
@given(hnp.basic_indices((3, 4, 5), allow_newaxis=True))
def test_basic_indexing_is_numpy_s(index):
    np.testing.assert_array_equal(tw.tensor(X)[index].numpy(), X[index])


@settings(max_examples=80, deadline=None)
@given(hnp.basic_indices((3, 4, 5)), st.floats(-5, 5, width=32))
def test_setting_items_is_numpy_s(index, number):
    expected, t = X.copy(), tw.tensor(X)
    expected[index] = number
    t[index] = number
    np.testing.assert_array_equal(t.numpy(), expected)


@pytest.mark.parametrize(
    "index", [np.array([2, 0]), (slice(None), np.array([1, -1])), np.array([True, False, True]), X > 30], ids=lambda i: str(type(i))
)
def test_arrays_as_indices(index):
    np.testing.assert_array_equal(tw.tensor(X)[index].numpy(), X[index])


@pytest.mark.parametrize(
    ("run", "kind", "message"),
    [
        (lambda: tw.ones((2, 3)) + tw.ones((4,)), tw.ShapeError, r"\(2, 3\) and \(4,\) do not broadcast"),
        (lambda: tw.ones((2, 3)) @ tw.ones((2, 3)), tw.ShapeError, r"\(2, 3\)"),
        (lambda: tw.tensor([1]) + tw.tensor([1.0]), tw.DtypeError, r"int64 and float32 do not promote.*astype"),
        (lambda: tw.tensor([1, 2]) * 0.5, tw.DtypeError, "a Python float does not combine with a int64 array"),
        (lambda: tw.ones((2,))[5], IndexError, "5"),
        (lambda: tw.take(tw.ones((3,)), tw.tensor([3])), tw.IndexRangeError, "3"),
        (lambda: tw.ones((2, 3)).reshape(4), tw.ShapeError, "has 6 elements"),
        (lambda: tw.ones((2, 3)).item(), tw.ShapeError, "has 6 elements; expected 1"),
        (lambda: bool(tw.ones((2,))), tw.ShapeError, "use .any"),
        (lambda: tw.tensor(["a"]), tw.DtypeError, "expected numbers"),
        (lambda: tw.tensor([1.0], device="toaster"), tw.DeviceError, "device 'toaster' is unknown; expected one of"),
        (lambda: tw.nn.functional.cross_entropy(tw.ones((2, 3)), tw.tensor([0, 3])), tw.IndexRangeError, "3"),
        (lambda: tw.nn.functional.mse_loss(tw.ones((2, 1)), tw.ones((2,))), tw.ShapeError, r"\(2, 1\)"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(run, kind, message):
    with pytest.raises(kind, match=message):
        run()


def test_a_layer_s_path_is_in_the_error():
    from twofold import nn

    model = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3)))
    with pytest.raises(tw.ShapeError, match=r"0\.0.*3.*4"):
        model(tw.ones((1, 3, 8, 8)))


def test_dlpack_shares_memory_both_ways():
    array = np.arange(6, dtype=np.float32)
    t = tw.from_dlpack(array)
    assert np.shares_memory(np.from_dlpack(t), array)
    out = np.from_dlpack(tw.tensor([1.0, 2.0]))
    assert out.tolist() == [1.0, 2.0]


def test_numpy_views_are_read_only_and_arrays_are_copies():
    t = tw.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        t.numpy()[0] = 5.0
    copied = np.asarray(t).copy()
    copied[0] = 5.0
    assert t.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8", "uint8", "int64", "bool"])
def test_dtypes_there_and_back(dtype):
    t = tw.ones((2, 2), dtype=getattr(tw, dtype))
    assert t.dtype == getattr(tw, dtype) and t.astype(tw.float32).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert str(t.numpy().dtype) == dtype


def test_the_namespace_of_a_tensor():
    xp = tw.tensor([1.0]).__array_namespace__()
    assert xp.sum(xp.asarray([1.0, 2.0])).item() == 3.0
    assert xp.__array_namespace_info__().default_dtypes()["real floating"] == tw.float32
