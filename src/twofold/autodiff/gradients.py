"""Reverse-mode differentiation: the one gradient algorithm.

    walk the producers of ``ys`` backwards;  at each node ask its op's ``vjp`` for the inputs' cotangents;  add them up

It reads only ``Value.producer`` and op records, so eager arrays and symbolic values are served by the same lines, and
since ``vjp`` rows are written with ops, gradients can be differentiated again. They are computed in the dtypes that were
recorded, whatever precision is asked for around the call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from twofold.base.errors import GradientError, ShapeError
from twofold.base.shapes import show
from twofold.ir import Node, Value, grad_mode, precision_mode
from twofold.ir.builder import eager_pull_back
from twofold.ops import full, sum_to
from twofold.ops.convert import cast

_NOTHING: frozenset[tuple[int, int]] = frozenset()


def gradients(
    ys: Sequence[Value],
    xs: Sequence[Value],
    grad_ys: Sequence[Value | None] | None = None,
    *,
    retain_graph: bool = True,
    create_graph: bool = True,
    independent: bool = False,
) -> list[Value | None]:
    """Gradients of ``sum(ys * grad_ys)`` with respect to each of ``xs``; None where no path leads to it.

    ``grad_ys`` default to ones (a y must then be a scalar unless the caller decides otherwise). With ``retain_graph``
    False the records walked are freed: a second walk is an error. With ``independent`` the xs are independent variables
    even where one was computed from another: what made them is not looked at (partial derivatives, not total ones).
    """
    wanted = {x.key for x in xs}
    stop = frozenset(wanted) if independent else _NOTHING
    order = producers(ys, stop)
    useful = _leading_to(order, wanted)
    cotangents: dict[tuple[int, int], Value] = {}
    with grad_mode(create_graph), precision_mode(None):
        for y, g in zip(ys, grad_ys or [None] * len(ys)):
            _accumulate(cotangents, y, _seed(y, g))
        for node in reversed(order):
            if id(node) in useful:
                _pull_back(node, cotangents, wanted, useful, stop)
            if not retain_graph:  # at once: what it kept serves for the gradients to come
                node.freed, node.inputs, node.outputs = True, (), ()
    return [cotangents.get(x.key) for x in xs]


def leaves(ys: Iterable[Value]) -> list[Value]:
    """Values without a producer (or owned by a variable) through which gradients of ``ys`` flow, in a fixed order."""
    found: dict[tuple[int, int], Value] = {}
    ys = list(ys)
    for value in [*ys, *(v for node in producers(ys) for v in node.inputs)]:
        if value.requires_grad and not value.detached and (value.producer is None or value.owner is not None):
            found.setdefault(value.key, value)
    return list(found.values())


def producers(ys: Iterable[Value], stop: frozenset[tuple[int, int]] = _NOTHING) -> list[Node]:
    """Every node above ``ys``, producers before users (depth first, without recursion); not beyond keys in ``stop``."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(n, False) for n in (_open_producer(y, stop) for y in ys) if n is not None]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            if node.freed:
                raise GradientError(
                    f"the record of {node.op.name!r} was freed by an earlier backward(); "
                    "call the first backward with retain_graph=True to go through it again"
                )
            stack.append((node, True))
            for value in node.inputs:
                producer = _open_producer(value, stop)
                if producer is not None and id(producer) not in seen:
                    stack.append((producer, False))
    return order


def _open_producer(value: Value, stop: frozenset[tuple[int, int]] = _NOTHING) -> Node | None:
    if value.owner is not None or value.detached or (stop and value.key in stop):
        return None
    return value.producer


def _leading_to(order: list[Node], wanted: set[tuple[int, int]]) -> set[int]:
    """Ids of the nodes with some input that is wanted, or that is computed from one."""
    useful: set[int] = set()
    for node in order:
        if any(_leads(value, wanted, useful) for value in node.inputs):
            useful.add(id(node))
    return useful


def _leads(value: Value, wanted: set[tuple[int, int]], useful: set[int]) -> bool:
    producer = _open_producer(value)
    return not value.detached and (value.key in wanted or (producer is not None and id(producer) in useful))


def _seed(y: Value, g: Value | None) -> Value:
    if not y.dtype.is_floating:
        raise GradientError(f"gradients flow from floating dtypes only; y has dtype {y.dtype.name}")
    if g is None:
        return full(y.shape, 1.0, y.dtype, like=y)
    if g.shape != y.shape:
        raise ShapeError(f"the gradient given for y has shape {show(g.shape)}; y has {show(y.shape)}")
    return cast(g, y.dtype)


def _pull_back(
    node: Node, cotangents: dict[tuple[int, int], Value], wanted: set[tuple[int, int]], useful: set[int],
    stop: frozenset[tuple[int, int]],
) -> None:  # fmt: skip
    keys = [(id(node), i) for i in range(len(node.outputs))]
    gs = [None if k in stop else cotangents.get(k) for k in keys]
    for key in keys:
        if key not in wanted:
            cotangents.pop(key, None)
    if all(g is None for g in gs):
        return
    if node.op.vjp is None:
        return
    if node.op.multi and not node.op.sparse:
        gs = [zeros_like(y) if g is None and y.dtype.is_floating else g for g, y in zip(gs, node.outputs)]
    asked = [i for i, value in enumerate(node.inputs) if value.dtype.is_floating and _leads(value, wanted, useful)]
    keys = [node.inputs[i].key for i in asked]
    vjp = functools.partial(_vjp, node)
    for whole in eager_pull_back:
        results = whole(node, gs, asked, [cotangents.get(k) for k in keys], vjp)
        if results is not None:
            cotangents.update((k, g) for k, g in zip(keys, results) if g is not None)
            return
    for i, g in zip(asked, vjp(gs, node.outputs, node.inputs, asked)):
        if g is not None:
            _accumulate(cotangents, node.inputs[i], g)


def _vjp(
    node: Node, gs: Sequence[Value | None], ys: Sequence[Value], xs: Sequence[Value], asked: Sequence[int]
) -> Iterator[Value | None]:
    """The cotangents of the inputs asked for: what the op's row gives for these values of the node's, in the inputs' types."""
    given = (tuple(gs), ys) if node.op.multi else (gs[0], ys[0])
    results = node.op.vjp(*given, *xs, **node.attrs)  # type: ignore[misc]
    for i, (x, g) in enumerate(zip(xs, results, strict=True)):
        if i in asked:
            yield None if g is None else _fit(g() if callable(g) else g, x)


def zeros_like(y: Value) -> Value:
    """Zeros of the type of ``y``, beside it."""
    return full(y.shape, 0.0, y.dtype, like=y)


def _fit(g: Value, value: Value) -> Value:
    """A cotangent in its input's shape and dtype: broadcasting is undone by summing."""
    return cast(sum_to(g, value.shape), value.dtype)


def _accumulate(cotangents: dict[tuple[int, int], Value], value: Value, g: Value) -> None:
    before = cotangents.get(value.key)
    cotangents[value.key] = g if before is None else before + g
