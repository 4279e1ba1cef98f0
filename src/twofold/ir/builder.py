"""Recording: who receives an op when it is applied.

``bind`` is the one door through which every op goes. A ``Builder`` on this thread's stack records it as a node of its
graph; otherwise a symbolic operand's own builder does; otherwise the eager interpreter (installed by
``twofold.tensor``) computes it at once.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.base.dtypes import as_dtype
from twofold.base.errors import GraphError, TwofoldError
from twofold.ir.op import OPS, Op
from twofold.ir.values import Graph, Node, Spec, State, Value


class _Context(threading.local):
    """What is going on in this thread: builders being filled, whether gradients are recorded, the layer path."""

    def __init__(self) -> None:
        self.builders: list[Builder] = []
        self.grad_enabled = True
        self.precision: Any = None  # what operands are cast to, see ``precision_mode``
        self.scope: tuple[str, ...] = ()
        self.assigned: dict[int, tuple[Any, Value]] | None = None  # see ``noting_assignments``


context = _Context()
eager_bind: list[Callable[..., Any]] = []  # filled by twofold.tensor
eager_composite: list[Callable[..., Any]] = []  # filled by twofold.tensor: a function of several ops, as one program
eager_pull_back: list[Callable[..., Any]] = []  # filled by twofold.tensor: gradients of one recorded op, as one program


def bind(op: Op | str, *inputs: Value, **attrs: Any) -> Any:
    """Apply an op to values: recorded or computed, by the rule above. Returns a Value, or a tuple for a ``multi`` op."""
    op = OPS[op] if isinstance(op, str) else op
    if context.precision is not None:
        inputs = context.precision.operands(op, inputs)
    builder = current_builder(inputs)
    if builder is not None:
        return builder.append(op, inputs, attrs)
    return eager_bind[-1](op, inputs, attrs)


def current_builder(values: Sequence[Value] = ()) -> Builder | None:
    """The builder that would record an op on ``values`` now, if any."""
    if context.builders:
        return context.builders[-1]
    for value in values:
        if type(value) is SymbolicValue:
            return value.builder
    return None


@contextlib.contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Record gradients (or not) inside the block, on this thread."""
    before, context.grad_enabled = context.grad_enabled, enabled
    try:
        yield
    finally:
        context.grad_enabled = before


@contextlib.contextmanager
def precision_mode(policy: Any) -> Iterator[None]:
    """The operands of ops applied in the block, on this thread, are those that ``policy.operands(op, values)`` gives
    (None: as they are). ``ops.precision`` has the policies; what is replayed or differentiated keeps its dtypes."""
    before, context.precision = context.precision, policy
    try:
        yield
    finally:
        context.precision = before


@contextlib.contextmanager
def noting_assignments() -> Iterator[dict[int, tuple[Any, Value]]]:
    """Collects the variables assigned in the block, on this thread: id -> (variable, its value before)."""
    before = context.assigned
    noted: dict[int, tuple[Any, Value]] = {}
    context.assigned = noted
    try:
        yield noted
    finally:
        context.assigned = before
        if before is not None:
            for key, item in noted.items():
                before.setdefault(key, item)


def note_assignment(variable: Any) -> None:
    """Called by a variable about to be assigned."""
    if context.assigned is not None:
        context.assigned.setdefault(id(variable), (variable, variable.value))


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Nodes and errors made in the block carry this layer path."""
    before, context.scope = context.scope, (*context.scope, name)
    try:
        yield
    except TwofoldError as error:
        annotate(error)
        raise
    finally:
        context.scope = before


def annotate(error: TwofoldError, place: str | None = None) -> None:
    """Put the layer path (by default the present one) before an error's message, once."""
    place = ".".join(context.scope) if place is None else place
    if place and not getattr(error, "located", False) and error.args:
        error.located = True  # type: ignore[attr-defined]
        error.args = (f"{place}: {error.args[0]}", *error.args[1:])


class SymbolicValue(Value):
    """A value of a graph being built."""

    __slots__ = ("builder",)

    def __init__(
        self, builder: Builder, spec: Spec, producer: Node | None = None, index: int = 0, name: str | None = None
    ):
        super().__init__(spec, producer, index, name)
        self.builder = builder


@dataclass
class GradientCell:
    """A leaf's ``.grad`` in a trace: what it was on entry (if ``read`` before it was written), and is now."""

    leaf: Any
    entry: Any
    now: Any
    read: bool


class Builder:
    """Fills a graph.

    ``parent`` is set for the branches and bodies of control flow (see ``twofold.ir.subgraph``): there foreign values
    become inputs (``captures``) that the parent supplies, and a variable's value is one of them. A sub-graph has no
    state of its own: what it assigns (``writes``) becomes an output, which the parent assigns.
    """

    def __init__(self, name: str = "graph", parent: Builder | None = None):
        self.graph = Graph(name)
        self.parent = parent
        self.captures: dict[Any, tuple[Value, Value]] = {}  # key of the foreign value -> (it, our input)
        self.variables: dict[int, State] = {}
        # what the trace assumed: (object, attribute, value)
        self.guards: list[tuple[Any, str, Any]] = [] if parent is None else parent.guards
        # objects that the trace depends on, by id: with what to call them, and how they were; see ``ir.assumed``
        self.watched: dict[int, tuple[Any, str, dict[str, Any]]] = {} if parent is None else parent.watched
        self.gradients: dict[int, GradientCell] = {}  # by id of the leaf
        self.spent: set[int] = set()  # ids of nodes that a backward() has gone through
        self.closed = False
        self.front: Any = None  # the user's object whose builder this is, if any
        self._state_names: set[str] = set()
        self._constants: dict[int, tuple[Any, Value]] = {}

    def watch(self, thing: Any, name: str = "") -> None:
        """A trace is to be made again when what ``thing.assumed()`` gives has changed."""
        if id(thing) not in self.watched:
            name = name or ".".join(context.scope) or type(thing).__name__
            self.watched[id(thing)] = thing, name, thing.assumed()

    # -- recording ---------------------------------------------------------------------------------------------------
    def append(self, op: Op, inputs: Sequence[Value], attrs: dict[str, Any]) -> Any:
        """Record one node; its type rule runs now, so a mistake is reported at the line that made it."""
        if self.closed:
            raise GraphError(f"graph {self.graph.name!r} is finished; {op.name} cannot be added to it")
        attrs.pop("device", None)  # a graph runs where it is told to
        lifted = tuple(self.lift(v) for v in inputs)
        try:
            specs = op.specs(tuple(v.spec for v in lifted), attrs)
        except TwofoldError as error:
            annotate(error)
            raise
        node = Node(op, lifted, attrs, ".".join(context.scope))
        tracked = context.grad_enabled and any(v.requires_grad and not v.detached for v in lifted)
        node.outputs = tuple(SymbolicValue(self, s, node, i) for i, s in enumerate(specs))
        for value in node.outputs:
            value.requires_grad = tracked and value.dtype.is_floating
            value.detached = not context.grad_enabled
        self.graph.nodes.append(node)
        return node.outputs if op.multi else node.outputs[0]

    def input(self, spec: Spec, name: str | None = None) -> SymbolicValue:
        """A new input of the graph."""
        value = SymbolicValue(self, spec, None, 0, name)
        self.graph.inputs.append(value)
        return value

    def constant(self, array: np.ndarray) -> Value:
        """A constant node; the array is copied and made read-only, so later changes of the original do not reach it."""
        array = np.array(array, copy=True)
        array.setflags(write=False)
        with _recording(self):
            return self.append(OPS["constant"], (), {"value": array})

    def lift(self, value: Value) -> Value:
        """``value`` as one of this graph's: itself, an input for a captured value, state for a variable, or a constant."""
        if isinstance(value, SymbolicValue) and value.builder is self:
            return value
        if value.owner is not None and not isinstance(value, SymbolicValue):
            return self.read(value.owner)
        if self.parent is not None:
            return self._capture(value)
        if isinstance(value, SymbolicValue):
            raise GraphError(
                f"{value!r} belongs to graph {value.builder.graph.name!r} and cannot be used in {self.graph.name!r}; "
                "pass it as an argument, or build both in one graph"
            )
        cached = self._constants.get(id(value))
        if cached is None:
            lifted = self.constant(np.asarray(value.numpy()))  # type: ignore[attr-defined]
            cached = self._constants[id(value)] = (value, lifted)
        return cached[1]

    def _capture(self, value: Value) -> Value:
        if value.key not in self.captures:
            assert self.parent is not None
            outer = self.parent.lift(value)
            self.captures[value.key] = (outer, self._stand_in(outer))
        return self.captures[value.key][1]

    def _stand_in(self, outer: Value) -> SymbolicValue:
        inner = SymbolicValue(self, outer.spec, None, 0, outer.name)
        inner.requires_grad, inner.detached, inner.owner = outer.requires_grad, outer.detached, outer.owner
        return inner

    # -- state -------------------------------------------------------------------------------------------------------
    def read(self, variable: Any) -> Value:
        """The present value of a variable, as this graph sees it."""
        state = self.variables.get(id(variable))
        if state is None:
            name = self._free_name(getattr(variable, "name", "") or f"state{len(self.variables)}")
            value = self._entry_value(variable, name)
            state = self.variables[id(variable)] = State(name, value, value, variable)
            if self.parent is None:
                self.graph.state.append(state)
        return state.output

    def _free_name(self, name: str) -> str:
        """``name``, with a number if a state has it already: two modules, or two optimizers, may call theirs the same."""
        names = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(2)))
        found = next(n for n in names if n not in self._state_names)
        self._state_names.add(found)
        return found

    def _entry_value(self, variable: Any, name: str) -> Value:
        if self.parent is None:
            spec = Spec(tuple(variable.shape), as_dtype(variable.dtype))
            return self._leaf(SymbolicValue(self, spec, None, 0, name), variable)
        outer = self.parent.read(variable)
        inner = self._stand_in(outer)
        self.captures["variable", id(variable)] = (
            outer,
            inner,
        )  # apart from captures of that value: it may be assigned
        return self._leaf(inner, variable)

    def write(self, variable: Any, value: Value) -> None:
        """Give a variable a new value from here on."""
        self.read(variable)
        value = self.append(OPS["detach"], (value,), {})
        self.variables[id(variable)].output = self._leaf(value, variable)

    def writes(self) -> list[State]:
        """The variables assigned so far."""
        return [s for s in self.variables.values() if s.written]

    @staticmethod
    def _leaf(value: Value, variable: Any) -> Value:
        value.owner, value.requires_grad = variable, bool(variable.requires_grad)
        value.detached = not value.requires_grad
        return value

    def read_gradient(self, leaf: Any, present: Any) -> Any:
        """A leaf's ``.grad`` as this trace sees it; ``present`` is its concrete value (or None) outside."""
        if self.parent is not None:
            return self.parent.read_gradient(leaf, present)
        if id(leaf) not in self.gradients:
            entry = present
            if present is not None:  # accumulated before this program: an input of it
                entry = type(present)(self.input(present.value.spec, f"{getattr(leaf, 'name', '')}.grad"))
            self.gradients[id(leaf)] = GradientCell(leaf, entry, entry, read=True)
        return self.gradients[id(leaf)].now

    def write_gradient(self, leaf: Any, gradient: Any) -> None:
        """Give a leaf another ``.grad`` from here on."""
        if self.parent is not None:
            return self.parent.write_gradient(leaf, gradient)
        cell = self.gradients.setdefault(id(leaf), GradientCell(leaf, None, None, read=False))
        cell.now = gradient
        return None

    # -- finishing ---------------------------------------------------------------------------------------------------
    def finish(self, outputs: Sequence[Value]) -> Graph:
        """Set the outputs and close the graph."""
        self.graph.outputs = [self.lift(v) for v in outputs]
        self.closed = True
        return self.graph


@contextlib.contextmanager
def recording(builder: Builder) -> Iterator[Builder]:
    """Everything applied in the block, on this thread, goes to ``builder``."""
    with _recording(builder):
        yield builder


@contextlib.contextmanager
def _recording(builder: Builder) -> Iterator[None]:
    context.builders.append(builder)
    try:
        yield
    finally:
        context.builders.pop()
