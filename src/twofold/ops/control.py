"""Control flow: ``cond``, ``while_loop``, ``scan`` as ops that hold graphs, and the functions that make them.

    cond(pred, *operands; true, false)                                   both graphs: operands -> outputs
    while_loop(*carry, *invariants; cond, body, carries, max_iterations) cond: -> bool; body: -> carry
    scan(*carry, *xs, *invariants; body, carries, xs, length, reverse, saved)
                                                                         body: carry, x, invariants -> carry, y

Called with concrete values (and nothing being recorded) the functions are plain Python loops and branches, so gradients
of dynamic programs just work. Recorded, each branch or body becomes a graph: values it uses from outside become extra
operands, and variables it assigns extra outputs (in loops: extra carries), which are assigned afterwards outside. The
gradients of the ops are in ``twofold.autodiff.control``, one layer up, which fills ``differentiate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from twofold.base.dims import Dim
from twofold.base.dtypes import bool_, float64
from twofold.base.errors import ArgumentError, DtypeError, GraphError, ShapeError
from twofold.base.tree import Structure, flatten, paths, unflatten
from twofold.ir import Graph, Op, Sample, Spec, Value, bind, current_builder, interpret, register
from twofold.ir.builder import Builder, context
from twofold.ir.subgraph import Part, closed, share_inputs, written_variables
from twofold.ops.convert import value
from twofold.ops.creation import full
from twofold.ops.elementwise import less
from twofold.ops.movement import reshape, slice_along, stack

Nest: TypeAlias = tuple[list[Value], Structure]
differentiate: dict[str, Callable[..., Any]] = {}  # op name -> vjp; filled by twofold.autodiff.control

# ---- the ops ---------------------------------------------------------------------------------------------------------


def _check_inputs(op: str, name: str, graph: Graph, given: Sequence[Spec]) -> None:
    taken = [v.spec for v in graph.inputs]
    if taken != list(given):
        takes, gets = (", ".join(map(str, specs)) or "nothing" for specs in (taken, given))
        raise GraphError(f"{op}: graph {name!r} takes {takes}; it is given {gets}")


def _check_bool(op: str, what: str, spec: Spec) -> None:
    if spec != Spec((), bool_):
        raise DtypeError(
            f"{op}: {what} is {spec}; expected a single bool (0-d); compare, and reduce with .any() or .all()"
        )


def _cond_infer(pred: Spec, *operands: Spec, true: Graph, false: Graph) -> tuple[Spec, ...]:
    _check_bool("cond", "the predicate", pred)
    _check_inputs("cond", "true", true, operands)
    _check_inputs("cond", "false", false, operands)
    outputs = tuple(v.spec for v in true.outputs)
    if outputs != tuple(v.spec for v in false.outputs):
        one, other = (", ".join(str(v.spec) for v in g.outputs) for g in (true, false))
        raise GraphError(f"cond: the branches give {one} and {other}; expected the same types")
    return outputs


def _cond_ref(pred: np.ndarray, *operands: np.ndarray, true: Graph, false: Graph) -> tuple[np.ndarray, ...]:
    return tuple(interpret(true if pred else false, operands))


def _while_infer(
    *operands: Spec, cond: Graph, body: Graph, carries: int, max_iterations: int | None
) -> tuple[Spec, ...]:
    _check_inputs("while_loop", "cond", cond, operands)
    _check_inputs("while_loop", "body", body, operands)
    if len(cond.outputs) != 1:
        raise GraphError(f"while_loop: the condition gives {len(cond.outputs)} values; expected one bool")
    _check_bool("while_loop", "the condition", cond.outputs[0].spec)
    _check_carry("while_loop", body.outputs, operands[:carries], exact=True)
    return operands[:carries]


def _check_carry(op: str, outputs: Sequence[Value], carry: Sequence[Spec], exact: bool) -> None:
    given = [v.spec for v in outputs]
    if given[: len(carry)] != list(carry) or (exact and len(given) != len(carry)):
        gives, wants = (", ".join(map(str, specs)) or "nothing" for specs in (given, carry))
        raise GraphError(f"{op}: the body gives {gives} for a carry of {wants}")


def _while_ref(
    *operands: np.ndarray, cond: Graph, body: Graph, carries: int, max_iterations: int | None
) -> tuple[np.ndarray, ...]:
    carry, invariants = list(operands[:carries]), operands[carries:]
    count = 0
    while (max_iterations is None or count < max_iterations) and interpret(cond, [*carry, *invariants])[0]:
        carry = interpret(body, [*carry, *invariants])
        count += 1
    return tuple(carry)


def _scan_infer(
    *operands: Spec, body: Graph, carries: int, xs: int, length: Dim, reverse: bool, saved: bool
) -> tuple[Spec, ...]:
    carry, sequences, invariants = operands[:carries], operands[carries : carries + xs], operands[carries + xs :]
    for x in sequences:
        if not x.shape or x.shape[0] != length:
            raise ShapeError(f"scan: a sequence is {x}; expected {length} along its first dimension")
    _check_inputs("scan", "body", body, [*carry, *(Spec(x.shape[1:], x.dtype) for x in sequences), *invariants])
    _check_carry("scan", body.outputs, carry, exact=False)
    stacked = [*body.outputs[carries:], *(body.inputs[:carries] if saved else ())]
    return (*carry, *(Spec((length, *v.shape), v.dtype) for v in stacked))


def _scan_ref(
    *operands: np.ndarray, body: Graph, carries: int, xs: int, length: int, reverse: bool, saved: bool
) -> tuple[np.ndarray, ...]:
    carry, sequences = list(operands[:carries]), operands[carries : carries + xs]
    stacked = [*body.outputs[carries:], *(body.inputs[:carries] if saved else ())]
    out = [np.empty((length, *v.shape), v.dtype.numpy) for v in stacked]
    for i in reversed(range(length)) if reverse else range(length):
        before = carry
        results = interpret(body, [*carry, *(x[i] for x in sequences), *operands[carries + xs :]])
        carry = results[:carries]
        for target, y in zip(out, [*results[carries:], *before]):
            target[i] = y
    return (*carry, *out)


def _samples(name: str) -> Callable[[], Iterator[Sample]]:
    """Small programs in float64: a branch, a loop that doubles until it is large, a running product."""

    def make() -> Iterator[Sample]:
        x, w = np.array([0.5, -1.25, 0.75]), np.array([1.5, 0.5, -0.25])
        one, two, three = ([Spec((3,), float64)] * n for n in (1, 2, 3))
        if name == "cond":
            branches = {
                "true": closed("true", one, lambda x: [x * x]),
                "false": closed("false", one, lambda x: [x + 1.0]),
            }
            yield Sample((np.array(True), x), branches)
            yield Sample((np.array(False), x), branches)
        elif name == "while_loop":
            grow = closed("body", two, lambda x, w: [x * 2.0 + w * w])
            small = closed("cond", two, lambda x, w: [less(reshape(slice_along(x, 0, 0, 1), ()), 20.0)])
            for bound in (None, 8):
                yield Sample((x, w), {"cond": small, "body": grow, "carries": 1, "max_iterations": bound})
        else:
            body = closed("body", three, lambda c, x, w: [c * x + w, c * w])
            for reverse in (False, True):
                attrs = {"body": body, "carries": 1, "xs": 1, "length": 2, "reverse": reverse, "saved": reverse}
                yield Sample((x, np.stack([w, x]), w), attrs)

    return make


def _vjp(name: str) -> Callable[..., Any]:
    return lambda gs, ys, *xs, **attrs: differentiate[name](gs, ys, *xs, **attrs)


def _op(name: str, infer: Any, ref: Any, doc: str) -> Op:
    return register(Op(name, infer, ref, _vjp(name), _samples(name), kind="control", multi=True, doc=doc))


COND = _op("cond", _cond_infer, _cond_ref, "One of two graphs, chosen by a bool.")
WHILE_LOOP = _op("while_loop", _while_infer, _while_ref, "A graph applied to its own result while another says so.")
SCAN = _op("scan", _scan_infer, _scan_ref, "A graph applied along the first dimension of sequences, with a carry.")


# ---- the functions ---------------------------------------------------------------------------------------------------


def _leaves(tree: Any, near: Sequence[Value] = ()) -> tuple[list[Value], Structure]:
    """The leaves of a nest as values (numbers become constants), and its structure. In a branch or body that is being
    recorded they are its own: what it returns as it found it outside is captured now, before inputs are shared."""
    leaves, structure = flatten(tree)
    values = [value(leaf, tuple(near)) for leaf in leaves]
    recorder = context.builders[-1] if context.builders else None
    return (values if recorder is None else [recorder.lift(v) for v in values]), structure


def _predicate(op: str, pred: Any) -> Value:
    pred = value(pred)
    _check_bool(op, "the predicate", pred.spec)
    return pred


def _is_true(pred: Value) -> bool:
    return bool(pred.numpy())  # type: ignore[attr-defined]


def _agree(op: str, what: str, got: Nest, source: str, expected: Nest) -> None:
    """Raise a GraphError that says which leaf of two nests differs in form, shape or dtype."""
    if got[1] != expected[1]:
        mine, other = (", ".join(paths(nest[1], "result")) or "nothing" for nest in (got, expected))
        raise GraphError(
            f"{op}: {what} gives {mine}; {source} gives {other}; expected the same structure of tuples, lists and dicts"
        )
    for path, a, b in zip(paths(got[1], "result"), got[0], expected[0]):
        if a.spec != b.spec:
            raise GraphError(
                f"{op}: {path} is {a.spec} in {what} and {b.spec} in {source}; cast or reshape one of them"
            )


def _deliver(builder: Builder, outputs: Sequence[Value], variables: Sequence[Any]) -> list[Value]:
    """Assign the last outputs to ``variables``; the others are the results."""
    count = len(outputs) - len(variables)
    for variable, new in zip(variables, outputs[count:]):
        builder.write(variable, new)
    return list(outputs[:count])


def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], *operands: Any) -> Any:
    """``true_fn(*operands)`` if ``pred`` (a single bool) else ``false_fn(*operands)``.

    Both must return the same nest of values, shapes and dtypes. In a recorded program both branches are recorded and
    one runs; variables that either assigns are assigned. Gradients flow through the branch that ran.
    """
    pred = _predicate("cond", pred)
    given, structure = _leaves(operands, (pred,))
    builder = current_builder((pred, *given))
    if builder is None:
        return (true_fn if _is_true(pred) else false_fn)(*unflatten(structure, given))
    given = [builder.lift(v) for v in given]

    def part(name: str, function: Callable[..., Any]) -> Part:
        return Part(builder, name, given, lambda *xs: _leaves(function(*unflatten(structure, xs)), xs))

    parts = [part("true", true_fn), part("false", false_fn)]
    _agree("cond", "false_fn", parts[1].result, "true_fn", parts[0].result)
    variables = written_variables(parts)
    finals = [[*part.result[0], *map(part.value_of, variables)] for part in parts]
    captured = share_inputs(parts)
    true, false = (part.finish(outputs) for part, outputs in zip(parts, finals))
    outputs = builder.append(COND, (pred, *given, *captured), {"true": true, "false": false})
    return unflatten(parts[0].result[1], _deliver(builder, outputs, variables))


def while_loop(
    cond_fn: Callable[[Any], Any], body_fn: Callable[[Any], Any], init: Any, max_iterations: int | None = None
) -> Any:
    """``carry = init; while cond_fn(carry): carry = body_fn(carry)``, at most ``max_iterations`` times.

    ``body_fn`` returns a nest like ``init``, each leaf with its shape and dtype. Recorded, the gradient of a loop with
    ``max_iterations`` keeps that many carries; without a bound nothing is kept, and the backward loop computes each
    carry again from the start: time grows with the square of the number of iterations, memory does not grow.
    """
    if max_iterations is not None and max_iterations < 0:
        raise ArgumentError(f"while_loop: max_iterations={max_iterations}; expected a count, or None for no bound")
    given, structure = _leaves(init)
    builder = current_builder(given)
    if builder is None:
        return _run_while(cond_fn, body_fn, (given, structure), max_iterations)
    given = [builder.lift(v) for v in given]
    body = Part(builder, "body", given, lambda *xs: _leaves(body_fn(unflatten(structure, xs)), xs))
    _agree("while_loop", "body_fn", body.result, "init", (given, structure))
    test = Part(builder, "cond", given, lambda *xs: value(cond_fn(unflatten(structure, xs)), xs))
    _check_bool("while_loop", "the result of cond_fn", test.result.spec)
    if test.writes:
        names = ", ".join(s.name for s in test.writes)
        raise GraphError(f"while_loop: cond_fn assigns {names}; assign variables (and draw random numbers) in body_fn")
    variables = written_variables([body])
    finals = [*body.result[0], *map(body.value_of, variables)]
    captured = share_inputs([body, test], variables)
    attrs = {
        "cond": test.finish([test.result]), "body": body.finish(finals), "carries": len(finals),
        "max_iterations": max_iterations,
    }  # fmt: skip
    outputs = builder.append(WHILE_LOOP, (*given, *captured), attrs)
    return unflatten(structure, _deliver(builder, outputs, variables))


def _run_while(cond_fn: Any, body_fn: Any, init: Nest, limit: int | None) -> Any:
    (leaves, structure), count = init, 0
    while limit is None or count < limit:
        carry = unflatten(structure, leaves)
        if not _is_true(_predicate("while_loop", cond_fn(carry))):
            break
        result = _leaves(body_fn(carry))
        _agree("while_loop", "body_fn", result, "init", init)
        leaves, count = result[0], count + 1
    return unflatten(structure, leaves)


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: Dim | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """``carry, y = f(carry, x)`` for each ``x`` along the first dimension of ``xs``; returns (last carry, stacked ys).

    ``xs`` is a nest of values with one first dimension, or None with ``length`` given. With ``reverse`` the last x
    comes first; each y stays at its x's place. Recorded, the gradient keeps the carry of every step.
    """
    sequences, form = _leaves(xs)
    init = _leaves(init, sequences)
    length = _length(sequences, paths(form, "xs"), length)
    builder = current_builder((*init[0], *sequences))
    if builder is not None:
        return _record_scan(builder, f, init, (sequences, form), length, reverse)
    if length == 0:  # nothing runs, but the ys have a type
        part = _scan_part(Builder("scan"), f, init, (sequences, form))
        ys = [full((0, *y.shape), 0, y.dtype) for y in part.result[1][0]]
        return unflatten(init[1], init[0]), unflatten(part.result[1][1], ys)
    return _run_scan(f, init, (sequences, form), length, reverse)


def _length(sequences: Sequence[Value], names: Sequence[str], length: Dim | None) -> Dim:
    for x, name in zip(sequences, names):
        if x.ndim == 0:
            raise ShapeError(f"scan: {name} is {x.spec}; expected at least one dimension, to go along")
        length = x.shape[0] if length is None else length
        if x.shape[0] != length:
            raise ShapeError(f"scan: {name} is {x.spec}; expected {length} along its first dimension")
    if length is None:
        raise ArgumentError("scan: without xs, length must be given")
    if isinstance(length, int) and length < 0:
        raise ArgumentError(f"scan: length={length}; expected a count")
    return length


def _step(f: Any, carry: Nest, x: Nest) -> tuple[Nest, Nest]:
    """One application of the user's function, its result taken apart and checked."""
    result = f(unflatten(carry[1], carry[0]), unflatten(x[1], x[0]))
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise GraphError(f"scan: f returns {type(result).__name__}; expected a pair (carry, y); y may be None")
    after = _leaves(result[0], carry[0])
    _agree("scan", "f's carry", after, "init", carry)
    return after, _leaves(result[1], after[0])


def _run_scan(f: Any, init: Nest, xs: Nest, length: Any, reverse: bool) -> tuple[Any, Any]:
    carry, rows, form = init, {}, init[1]
    for i in reversed(range(length)) if reverse else range(length):
        x = [reshape(slice_along(s, 0, i, i + 1), s.shape[1:]) for s in xs[0]]
        carry, (rows[i], form) = _step(f, carry, (x, xs[1]))
    ys = [stack(column) for column in zip(*(rows[i] for i in range(length)))]
    return unflatten(*carry[::-1]), unflatten(form, ys)


def _scan_part(builder: Builder, f: Any, init: Nest, xs: Nest) -> Part:
    carry, slices = [builder.lift(v) for v in init[0]], []
    for sequence in map(builder.lift, xs[0]):
        x = Value(Spec(sequence.shape[1:], sequence.dtype))
        x.requires_grad, x.detached = sequence.requires_grad, sequence.detached
        slices.append(x)
    count = len(carry)
    run = lambda *values: _step(f, (list(values[:count]), init[1]), (list(values[count:]), xs[1]))
    return Part(builder, "body", [*carry, *slices], run)


def _record_scan(builder: Builder, f: Any, init: Nest, xs: Nest, length: Dim, reverse: bool) -> tuple[Any, Any]:
    body = _scan_part(builder, f, init, xs)
    (carry, structure), (ys, form) = body.result
    variables = written_variables([body])
    finals = [*carry, *map(body.value_of, variables)]
    outer = share_inputs([body], variables)
    graph = body.finish([*finals, *ys])
    operands = [*init[0], *outer[: len(variables)], *xs[0], *outer[len(variables) :]]
    graph.inputs = _ordered(graph.inputs, len(carry), len(xs[0]), len(variables))
    attrs = {"carries": len(finals), "xs": len(xs[0]), "length": length, "reverse": reverse}
    outputs = apply_scan(graph, operands, attrs, builder)
    results, stacked = outputs[: len(finals)], outputs[len(finals) : len(finals) + len(ys)]
    return unflatten(structure, _deliver(builder, results, variables)), unflatten(form, list(stacked))


def _ordered(inputs: list[Value], carries: int, xs: int, variables: int) -> list[Value]:
    """From (carry, x, variables, captures) to (carry, variables, x, captures)."""
    at = carries + xs
    return [*inputs[:carries], *inputs[at : at + variables], *inputs[carries:at], *inputs[at + variables :]]


def apply_scan(body: Graph, operands: Sequence[Value], attrs: dict[str, Any], builder: Builder | None = None) -> Any:
    """A scan op that saves the carries of all steps if its gradient may be wanted."""
    saved = context.grad_enabled and any(v.requires_grad and not v.detached for v in operands)
    attrs = {**attrs, "body": body, "saved": saved}
    return bind(SCAN, *operands, **attrs) if builder is None else builder.append(SCAN, operands, attrs)
