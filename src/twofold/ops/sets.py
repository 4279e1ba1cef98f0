"""Functions whose result's shape depends on the numbers: nonzero and the unique family. Eager only, no gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.base.errors import ShapeError
from twofold.ir import Value
from twofold.ops.convert import value
from twofold.ops.indexing import concrete_array


class UniqueAll(NamedTuple):
    """Result of ``unique_all``."""

    values: Value
    indices: Value
    inverse_indices: Value
    counts: Value


class UniqueCounts(NamedTuple):
    """Result of ``unique_counts``."""

    values: Value
    counts: Value


class UniqueInverse(NamedTuple):
    """Result of ``unique_inverse``."""

    values: Value
    inverse_indices: Value


def nonzero(x: Any, /) -> tuple[Value, ...]:
    """Positions (int64) of the elements that are not zero, one array for each dimension."""
    x = value(x)
    if x.ndim == 0:
        raise ShapeError("nonzero: x is 0-d; expected at least one dimension; reshape it to (1,)")
    return tuple(value(p.astype(np.int64), (x,)) for p in np.nonzero(concrete_array(x, "nonzero")))


def unique_all(x: Any, /) -> UniqueAll:
    """Distinct elements in order, where each stands first, which one each element is, and how often it occurs."""
    x = value(x)
    array = concrete_array(x, "unique_all")
    values, first, inverse, counts = np.unique(array, True, True, True, equal_nan=False)
    parts = (values, first, inverse.reshape(array.shape), counts)
    return UniqueAll(value(parts[0], (x,)), *(value(p.astype(np.int64), (x,)) for p in parts[1:]))


def unique_counts(x: Any, /) -> UniqueCounts:
    """Distinct elements in order, and how often each occurs."""
    out = unique_all(x)
    return UniqueCounts(out.values, out.counts)


def unique_inverse(x: Any, /) -> UniqueInverse:
    """Distinct elements in order, and which one each element is."""
    out = unique_all(x)
    return UniqueInverse(out.values, out.inverse_indices)


def unique_values(x: Any, /) -> Value:
    """Distinct elements in order."""
    return unique_all(x).values
