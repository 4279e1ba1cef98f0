"""Shape arithmetic shared by every layer: broadcasting, axes, products. Works on symbolic dims too."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from twofold.base.dims import Dim, Sym
from twofold.base.errors import ShapeError

Shape: TypeAlias = tuple[Dim, ...]


def product(shape: Iterable[Dim]) -> Dim:
    """Number of elements."""
    return functools.reduce(operator.mul, shape, 1)


def show(shape: Sequence[Dim]) -> str:
    """A shape as Python prints it: ``(8, 3, 224, 224)``, ``(N,)``."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def broadcast(*shapes: Shape) -> Shape:
    """The shape in which all meet (NumPy's rule). ShapeError names every shape."""
    if all(s == shapes[0] for s in shapes):
        return shapes[0]
    rank = max(map(len, shapes))
    out: list[Dim] = []
    for column in zip(*[(1,) * (rank - len(s)) + tuple(s) for s in shapes]):
        wide = [d for d in column if d != 1]
        if any(d != wide[0] for d in wide):
            raise ShapeError(f"shapes {' and '.join(map(show, shapes))} do not broadcast")
        out.append(wide[0] if wide else 1)
    return tuple(out)


def as_shape(shape: Dim | Iterable[Dim]) -> Shape:
    """A tuple of dims from a dim or an iterable of them; negative sizes are refused."""
    if isinstance(shape, Sym) or not isinstance(shape, Iterable):
        shape = (shape,)
    out = tuple(d if isinstance(d, Sym) else operator.index(d) for d in shape)
    if any(isinstance(d, int) and d < 0 for d in out):
        raise ShapeError(f"shape {show(out)} has a negative size")
    return out


def axis_index(axis: int, rank: int, what: str = "axis") -> int:
    """``axis`` counted from the front; ShapeError when it lies outside ``[-rank, rank)``."""
    axis = operator.index(axis)
    if not -rank <= axis < rank:
        raise ShapeError(f"{what} {axis} is out of range for an array of {rank} dimensions")
    return axis % rank


def axis_tuple(axis: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Sorted, distinct axes counted from the front; None means all of them."""
    if axis is None:
        return tuple(range(rank))
    axes = [axis_index(a, rank) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))]
    if len(set(axes)) != len(axes):
        raise ShapeError(f"axis {axis} names a dimension twice")
    return tuple(sorted(axes))


def without(shape: Shape, axes: Iterable[int], keepdims: bool) -> Shape:
    """``shape`` after reducing ``axes``."""
    axes = set(axes)
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)


def is_static(shape: Shape) -> bool:
    """Whether every dim is a number."""
    return not any(isinstance(d, Sym) for d in shape)
