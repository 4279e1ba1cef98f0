"""The dtype table and promotion, against the array API standard's own tables (NumPy 2 as the oracle)."""

from __future__ import annotations

import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest

from twofold.base import dtypes
from twofold.base.dtypes import as_dtype, is_kind, promote, scalar_dtype
from twofold.base.errors import DtypeError

NUMPY_HAS = [d for d in dtypes.ALL if d is not dtypes.bfloat16]


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_each_record_agrees_with_numpy(dtype):
    assert dtype.numpy.itemsize == dtype.itemsize
    assert dtype.numpy.name == dtype.name
    assert as_dtype(dtype.numpy) is as_dtype(dtype.name) is as_dtype(dtype.numpy.type) is dtype
    assert dtypes.BY_SHORT[dtype.short] is dtype
    assert pickle.loads(pickle.dumps(dtype)) is dtype
    assert dtype == dtype.name and dtype == dtype.numpy and hash(dtype) == hash(dtype.name)


def test_python_types_and_bfloat16():
    assert (as_dtype(bool), as_dtype(int), as_dtype(float)) == (dtypes.bool_, dtypes.int64, dtypes.float32)
    assert as_dtype(ml_dtypes.bfloat16) is dtypes.bfloat16


@pytest.mark.parametrize("like", ["complex64", complex, "float128x", object, "U3", "int4"])
def test_dtypes_without_counterpart_are_errors(like):
    with pytest.raises(DtypeError, match="expected one of"):
        as_dtype(like)
    assert dtypes.float32 != like


def standard_allows(a: dtypes.DType, b: dtypes.DType) -> bool:
    kinds = {a.kind, b.kind}
    return len(kinds) == 1 or (kinds == {"i", "u"} and "uint64" not in (a.name, b.name))


@pytest.mark.parametrize(
    "other", [None, 3, {"a": 1}, [], (), "nonsense", "complex64", object()], ids=lambda x: type(x).__name__
)
def test_a_dtype_equals_nothing_but_its_spellings(other):
    assert dtypes.float64 != other
    with pytest.raises(DtypeError):
        as_dtype(other)


@pytest.mark.parametrize("a, b", list(itertools.product(NUMPY_HAS, repeat=2)), ids=str)
def test_promotion_is_the_standard_s(a, b):
    if standard_allows(a, b):
        assert promote(a, b).numpy == np.promote_types(a.numpy, b.numpy)
    else:
        with pytest.raises(DtypeError, match=r"do not promote.*astype"):
            promote(a, b)


@pytest.mark.parametrize("other, result", [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")])
def test_promotion_of_bfloat16(other, result):
    assert promote(dtypes.bfloat16, as_dtype(other)).name == promote(as_dtype(other), dtypes.bfloat16).name == result


SCALARS = [
    (True, None, "bool"),
    (1, None, "int64"),
    (1.5, None, "float32"),
    (True, "bool", "bool"),
    (1, "uint8", "uint8"),
    (255, "uint8", "uint8"),
    (-128, "int8", "int8"),
    (1, "float16", "float16"),
    (1.5, "bfloat16", "bfloat16"),
    (1.5, "float64", "float64"),
]


@pytest.mark.parametrize("value, meets, result", SCALARS)
def test_python_scalars_are_weak(value, meets, result):
    assert scalar_dtype(value, meets and as_dtype(meets)).name == result


REFUSED = [
    (1.5, "int32", DtypeError, "cast the array"),
    (1, "bool", DtypeError, "bool array"),
    (True, "float32", DtypeError, "Python bool"),
    (256, "uint8", OverflowError, r"256 does not fit uint8 \[0, 255\]"),
    (-1, "uint8", OverflowError, "does not fit"),
    (2**63, "int64", OverflowError, "does not fit"),
]


def test_an_int_on_its_own_must_fit_int64():
    with pytest.raises(OverflowError, match="does not fit int64"):
        scalar_dtype(2**63, None)


@pytest.mark.parametrize("value, meets, error, message", REFUSED)
def test_scalars_that_do_not_fit_are_errors(value, meets, error, message):
    with pytest.raises(error, match=message):
        scalar_dtype(value, as_dtype(meets))


@pytest.mark.parametrize("kind", dtypes.KINDS)
def test_kinds_agree_with_numpy(kind):
    for dtype in NUMPY_HAS:
        assert is_kind(dtype, kind) == np.isdtype(dtype.numpy, kind), dtype


def test_kinds_in_tuples_and_unknown_ones():
    assert is_kind(dtypes.int8, ("bool", "integral")) and is_kind(dtypes.int8, dtypes.int8)
    assert not is_kind(dtypes.int8, (dtypes.int16, "bool"))
    with pytest.raises(DtypeError, match="unknown"):
        is_kind(dtypes.int8, "integer")
