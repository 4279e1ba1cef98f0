"""Gathers read through a checked computed index; scatters are loops that add or replace in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.loops import Affine, Expr, Nest, Store, Var, const, constant, from_index, load, op, var
from twofold.backends.cpu.loops.expr import both, converted, select
from twofold.backends.cpu.loops.index import dynamic
from twofold.backends.cpu.lowering.steps import At, Placed, remembered
from twofold.base.dtypes import bool_, int64, sum_dtype
from twofold.ir import Node, Spec, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering


NAMES = {"gather": "take"}  # what users call an op that has another name


def out_of_range(node: Node, axis: int, size: int, least: int) -> str:
    """What a check says when it fails; the program fills in ``{index}``. The words are the reference's (``ops.gather``)."""
    name = NAMES.get(node.op.name, node.op.name)
    return f"{name}: index {{index}} is out of range for axis {axis} of size {size}; expected {least} <= index < {size}"


def checked(
    low: Lowering, node: Node, indices: Value, size: int, axis: int, *, least: int | None = None, column: int = -1
) -> At:
    """The elements of ``indices`` (of its last axis that in ``column``, if one is given), counted from the end if negative, as
    numbers from 0; one outside [``least``, ``size``) is reported as an error. ``least`` is -size unless given.

    Where a program overwrites state they are looked at before: a step of its own stores what they are (see ``assemble``); and
    so where there is nothing that could be read at them.
    """
    pick, shape = low.at(indices), tuple(indices.shape) if column < 0 else tuple(indices.shape[:-1])
    code = low.check(out_of_range(node, axis, size, -size if least is None else least), node)
    name = f"checked:{size}:{code}" + (":0" if least == 0 else "")

    def at(index: Sequence[Affine]) -> Expr:
        return op(name, int64, pick(index if column < 0 else [*index, constant(column)]))

    if size and not low.overwrites:
        return at
    key = (indices, size, least, column)
    if key not in low.checked:
        spec = Spec(shape, int64)
        low.checked[key] = low.temporary(spec, "indices")
        low.map(spec, low.checked[key], at, [node])
    return low.checked[key].at


def _formula(rule: Any) -> Any:
    """A rule that makes a formula of its own (it needs the lowering, for error codes)."""

    def lower(low: Lowering, node: Node) -> None:
        out = node.outputs[0]
        low.formulas[out] = remembered(rule(low, node))
        low.settle(node, out)

    return lower


def _gather(low: Lowering, node: Node) -> Any:
    (x, indices), axis = node.inputs, node.attrs["axis"]
    read, size = low.at(x), int(x.shape[axis])
    pick = checked(low, node, indices, size, axis)
    if not size:
        return lambda index: const(x.dtype, 0)

    def at(index: Sequence[Affine]) -> Expr:
        place = dynamic(pick(index[axis : axis + indices.ndim]), size)
        return read([*index[:axis], place, *index[axis + indices.ndim :]])

    return at


def _take_along(low: Lowering, node: Node) -> Any:
    (x, indices), axis = node.inputs, node.attrs["axis"]
    read, size = low.at(x), int(x.shape[axis])
    pick = checked(low, node, indices, size, axis)
    if not size:
        return lambda index: const(x.dtype, 0)
    return lambda index: read([dynamic(pick(index), size) if d == axis else i for d, i in enumerate(index)])


def _gather_nd(low: Lowering, node: Node) -> Any:
    x, indices = node.inputs
    read, points = low.at(x), indices.ndim - 1
    point = _point(low, node, indices, x.shape)  # type: ignore[arg-type]
    if 0 in x.shape:
        return lambda index: const(x.dtype, 0)
    return lambda index: read([*point(index[:points]), *index[points:]])


def _point(low: Lowering, node: Node, indices: Value, shape: Sequence[int]) -> Callable[[Sequence[Affine]], list[Affine]]:
    """The point that the last axis of ``indices`` says, in an array of this shape."""
    sizes = [int(d) for d in shape[: int(indices.shape[-1])]]
    picks = [checked(low, node, indices, size, k, column=k) for k, size in enumerate(sizes)]
    return lambda where: [dynamic(pick(where), size) for pick, size in zip(picks, sizes)]


def _one_hot(low: Lowering, node: Node) -> Any:
    indices, depth, dtype = node.inputs[0], node.attrs["depth"], node.attrs["dtype"]
    pick = checked(low, node, indices, depth, indices.ndim, least=0)

    def at(index: Sequence[Affine]) -> Expr:
        hit = op("equal", bool_, pick(index[:-1]), from_index(index[-1], int64))
        return converted(hit, dtype)

    return at


def _searchsorted(low: Lowering, node: Node) -> Any:
    """A binary search for each element, its halvings written out: the place grows by the powers of two that fit."""
    x1, x2 = node.inputs
    read, wanted, size = low.at(x1), low.at(x2), int(x1.shape[0])
    before = _before if node.attrs["side"] == "left" else lambda a, b: op("logical_not", bool_, _before(b, a))

    def at(index: Sequence[Affine]) -> Expr:
        place, x = const(int64, 0), wanted(index)
        for power in reversed(range(size.bit_length())):
            step = 1 << power
            probe = op("add", int64, place, const(int64, step - 1))
            there = read([dynamic(op("minimum", int64, probe, const(int64, size - 1)), size)])
            fits = op("less", bool_, probe, const(int64, size))
            place = select(both(fits, before(there, x)), op("add", int64, place, const(int64, step)), place)
        return place

    return at


def _before(a: Expr, b: Expr) -> Expr:
    """Whether ``a`` is sorted before ``b``: NaN is the largest number."""
    less = op("less", bool_, a, b)
    if not a.dtype.is_floating:
        return less
    is_nan = lambda x: op("not_equal", bool_, x, x)
    return op("logical_or", bool_, less, both(is_nan(b), op("logical_not", bool_, is_nan(a))))


# ---- scatters --------------------------------------------------------------------------------------------------------


def _start(low: Lowering, node: Node, spec: Spec, at: Any) -> Placed:
    """The array a scatter writes into: a copy of something, or zeros in the accumulation dtype."""
    target = low.temporary(Spec(spec.shape, sum_dtype(spec.dtype)), node.op.name)
    low.map(spec, target, at, [node])
    return target


def _finish(low: Lowering, node: Node, target: Placed) -> None:
    out = node.outputs[0]
    if target.buffer.dtype is out.dtype:
        low.result(out, target)
        return
    final = low.allocate(out)
    low.map(out.spec, final, lambda index: converted(target.at(index), out.dtype), [node])
    low.result(out, final)


def _scatter(
    low: Lowering, node: Node, target: Placed, kept: list[Var], rows: list[Var], place: Sequence[Affine], new: Expr, add: bool
) -> None:
    """``target[place] += new`` (or ``= new``) for every index, the ``rows`` in order."""
    address, dtype = target.address(place), target.buffer.dtype
    value = converted(new, dtype)
    if add:
        value = op("logical_or" if dtype is bool_ else "add", dtype, load(target.buffer, address), value)
    low.nest(Nest(kept, [], rows, [], [Store(target.buffer, address, value)]), [node])


def _variables(value: Value) -> list[Var]:
    return [Var(int(d), "i") for d in value.shape]


def _zeros(node: Node) -> Any:
    zero = const(sum_dtype(node.outputs[0].dtype), 0)
    return lambda index: zero


def _scatter_add(low: Lowering, node: Node) -> None:
    (updates, indices), axis, size = node.inputs, node.attrs["axis"], int(node.attrs["size"])
    target, variables = _start(low, node, node.outputs[0].spec, _zeros(node)), _variables(updates)
    index = [var(v) for v in variables]
    rows, kept = variables[axis : axis + indices.ndim], variables[:axis] + variables[axis + indices.ndim :]
    if 0 not in updates.shape:
        pick = checked(low, node, indices, size, axis)
        if size:
            place = dynamic(pick(index[axis : axis + indices.ndim]), size)
            where = [*index[:axis], place, *index[axis + indices.ndim :]]
            _scatter(low, node, target, kept, rows, where, low.at(updates)(index), True)
    _finish(low, node, target)


def _add_along(low: Lowering, node: Node) -> None:
    (updates, indices), axis, size = node.inputs, node.attrs["axis"], int(node.attrs["size"])
    target, variables = _start(low, node, node.outputs[0].spec, _zeros(node)), _variables(updates)
    index = [var(v) for v in variables]
    if 0 not in updates.shape:
        pick = checked(low, node, indices, size, axis)
        if size:
            where = [dynamic(pick(index), size) if d == axis else i for d, i in enumerate(index)]
            kept = [v for d, v in enumerate(variables) if d != axis]
            _scatter(low, node, target, kept, [variables[axis]], where, low.at(updates)(index), True)
    _finish(low, node, target)


def _at_points(low: Lowering, node: Node, target: Placed, indices: Value, updates: Value, add: bool) -> None:
    variables, points = _variables(updates), indices.ndim - 1
    index = [var(v) for v in variables]
    if 0 not in updates.shape:
        point = _point(low, node, indices, target.shape)
        if 0 not in target.shape:
            where = [*point(index[:points]), *index[points:]]
            _scatter(low, node, target, variables[points:], variables[:points], where, low.at(updates)(index), add)
    _finish(low, node, target)


def _add_nd(low: Lowering, node: Node) -> None:
    updates, indices = node.inputs
    _at_points(low, node, _start(low, node, node.outputs[0].spec, _zeros(node)), indices, updates, True)


def _scatter_nd(low: Lowering, node: Node) -> None:
    x, indices, updates = node.inputs
    target = low.allocate(node.outputs[0])
    low.map(x.spec, target, low.at(x), [node])
    _at_points(low, node, target, indices, updates, False)


INLINE: dict[str, Any] = {}
NESTS: dict[str, Any] = {
    "gather": _formula(_gather), "take_along_axis": _formula(_take_along), "gather_nd": _formula(_gather_nd),
    "one_hot": _formula(_one_hot), "searchsorted": _formula(_searchsorted), "scatter_add": _scatter_add,
    "add_along_axis": _add_along, "add_nd": _add_nd,
    "scatter_nd": _scatter_nd,
}  # fmt: skip
