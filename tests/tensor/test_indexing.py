"""Indexing, assignment to parts and their gradients, against NumPy, over indices that hypothesis makes up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import twofold as tw

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def cases(draw):
    """An array and an index of it: integers, slices, new axes and an ellipsis, with integer arrays or a mask among them."""
    shape = draw(SHAPES)
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    if draw(st.integers(0, 5)) == 0:
        return x, draw(hnp.arrays(bool, shape[: draw(st.integers(1, len(shape)))]))
    basic = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    items = list(basic) if isinstance(basic, tuple) else [basic]
    axis = 0
    for place, item in enumerate(items):
        if item is Ellipsis:
            break
        if item is None:
            continue
        if shape[axis] and draw(st.integers(0, 2)) == 0:
            limits = st.integers(-shape[axis], shape[axis] - 1)
            items[place] = draw(hnp.arrays(np.int64, draw(st.sampled_from([(2,), (1,), (3, 1), ()])), elements=limits))
        axis += 1
    return x, tuple(items)


def as_tw(index):
    """The same index with tensors in place of arrays."""
    if isinstance(index, tuple):
        return tuple(map(as_tw, index))
    return tw.asarray(index) if isinstance(index, np.ndarray) else index


def numpy_gives(x, index):
    try:
        return np.asarray(x[index])
    except IndexError:  # arrays that do not broadcast together
        return None


@settings(max_examples=150, deadline=None)
@given(cases())
def test_reading_is_numpy_s_and_its_gradient_counts_the_reads(case):
    x, index = case
    expected = numpy_gives(x, index)
    if expected is None:
        return
    t = tw.tensor(x, requires_grad=True)
    out = t[as_tw(index)]
    np.testing.assert_array_equal(out.numpy(), expected)
    weights = np.arange(1.0, expected.size + 1).reshape(expected.shape)
    counts = np.zeros_like(x)
    np.add.at(counts, index, weights)
    np.testing.assert_allclose(tw.gradients((out * tw.tensor(weights)).sum(), t).numpy(), counts)


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_assigning_is_numpy_s(case, scalar):
    x, index = case
    part = numpy_gives(x, index)
    if part is None:
        return
    new = np.asarray(-1.0) if scalar else -np.arange(1.0, part.size + 1).reshape(part.shape)
    expected, t = x.copy(), tw.tensor(x)
    before = t.value
    expected[index] = new
    t[as_tw(index)] = tw.tensor(new)
    np.testing.assert_array_equal(t.numpy(), expected)
    np.testing.assert_array_equal(tw.Tensor(before).numpy(), x)  # the old value is as it was


INDICES = [np.s_[1:3, ::2], np.s_[::-1, 1], np.s_[[0, 2, 2]], np.s_[[0, 1], [1, 1]], np.s_[..., -1:]]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_assignment_passes_gradients_to_what_is_kept_and_what_is_new(index):
    def f(x, new):
        y = x * 1.0
        y[index] = new * new
        return (y * y).sum()

    x = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
    new = np.linspace(0.5, 1.5, x[index].size).reshape(x[index].shape)
    tw.autodiff.check(f, [x, new])


def test_traced_indices_agree_with_eager_ones():
    x = tw.tensor(np.arange(24.0).reshape(4, 6))
    rows = tw.tensor([3, 0, -1])

    def f(x, rows):
        y = x * 2
        y[rows, 1:3] = 0
        return y[::-2, [1, 1]], y[rows], y[:, None, -1]

    for eager, compiled in zip(f(x, rows), tw.compile(f)(x, rows)):
        assert eager.tolist() == compiled.tolist()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (4, r"index 4 is out of range for axis 0 of size 4; expected -4 <= index < 4"),
        (np.s_[0, -7], r"index -7 is out of range for axis 1 of size 6"),
        (np.s_[:, [0, 6]], r"index 6 is out of range for axis 1 of size 6"),
        (np.s_[0, 0, 0], r"too many indices: 3 for an array of shape \(4, 6\)"),
        (np.s_[..., ...], r"only one ellipsis"),
        (np.s_[::0], r"step 0"),
        (np.s_[1.5], r"index 1.5 for axis 0 is a float; expected an integer"),
        (np.ones((4, 5), bool), r"mask of shape \(4, 5\) does not match \(4, 6\)"),
    ],
    ids=str,
)
def test_wrong_indices_are_explained(index, message):
    with pytest.raises(tw.IndexRangeError, match=message):
        tw.zeros((4, 6))[index]


def test_a_mask_in_a_compiled_program_is_refused_with_a_way_out():
    with pytest.raises(tw.TraceError, match=r"tw\.where"):
        tw.compile(lambda x: x[x > 0])(tw.tensor([1.0, -1.0]))


def test_assigning_by_a_mask_works_in_a_compiled_program():
    def f(x):
        y = x * 1
        y[y < 0] = 0.0
        return y

    assert tw.compile(f)(tw.tensor([1.0, -1.0])).tolist() == [1.0, 0.0]
