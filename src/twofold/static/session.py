"""Graphs built by hand: ``with tw.Graph() as g``, ``tw.placeholder``, and ``tw.Session(g).run(fetches, feed_dict)``.

>>> import twofold as tw
>>> with tw.Graph() as g:
...     x = tw.placeholder((None, 2), tw.float32, "x")
...     total = (x * 3.0).sum()
...     (slope,) = tw.gradients(total, [x])
>>> value, gradient = tw.Session(g).run([total, slope], feed_dict={x: [[1.0, 2.0]]})
>>> float(value), gradient.tolist()
(9.0, [[3.0, 3.0]])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twofold.backends import Device, chosen_device, device
from twofold.base.dims import Dim, Sym, symbol, symbols_in
from twofold.base.dtypes import as_dtype
from twofold.base.errors import DeviceError, GraphError
from twofold.base.shapes import Shape
from twofold.base.tree import flatten, unflatten
from twofold.ir import Builder, Node, Spec, State, Value, context
from twofold.ir import Graph as IRGraph
from twofold.ir.builder import SymbolicValue
from twofold.ir.text import print_graph
from twofold.static.runner import GraphRunner, as_array
from twofold.tensor.tensor import Tensor
from twofold.tensor.variable import Variable


class Graph:
    """A graph that records everything computed in its ``with`` block; the block may be entered again to add to it.

    ``updates`` is what to fetch so that all assignments recorded in the graph take effect (``opt.step()``, batch-norm
    statistics). Fetching the tensor of a single ``v.assign(...)`` applies that one alone. A graph built, or a placeholder
    made, inside ``with tw.device(...)`` is run there, wherever its session is (``device``; None: nothing was said).
    """

    def __init__(self, name: str = "graph"):
        self.builder = Builder(name)
        self.builder.front = self
        self.placeholders: dict[str, SymbolicValue] = {}
        self.device: Device | None = None

    def __enter__(self) -> Graph:
        self._place()
        context.builders.append(self.builder)
        return self

    def __exit__(self, *_: Any) -> None:
        context.builders.remove(self.builder)

    def _place(self) -> None:
        """Take note of the device that has been chosen for what is built now."""
        chosen = chosen_device()
        if self.device is not None and chosen not in (None, self.device):
            raise DeviceError(
                f"{self.builder.graph.name}: built on {self.device}, and now inside `with tw.device('{chosen}')`; "
                "a graph runs on one device, or on a group of one kind (tw.Session(g, devices=...))"
            )
        self.device = self.device or chosen

    @property
    def updates(self) -> list[Tensor]:
        """The new values of all variables assigned in the graph."""
        return [Tensor(s.output) for s in self.builder.graph.state if s.written]

    @property
    def symbols(self) -> set[str]:
        return self.builder.graph.symbols()

    def add_placeholder(self, shape: Shape, dtype: Any, name: str) -> Tensor:
        """See ``placeholder``."""
        if name in self.placeholders:
            raise GraphError(f"placeholder {name!r} exists in this graph; names are unique")
        self._place()
        value = self.placeholders[name] = self.builder.input(Spec(shape, as_dtype(dtype)), name)
        return Tensor(value)

    def __str__(self) -> str:
        return print_graph(self.builder.graph)

    def __repr__(self) -> str:
        return repr(self.builder.graph)


def placeholder(shape: Sequence[Any], dtype: Any = "float32", name: str | None = None) -> Tensor:
    """An input of the graph being built, given its value at ``Session.run``.

    A dim is a number, None (unknown), or the name of a symbolic size. None at the same axis means the same size in the
    whole graph (axis 0: ``N``, the batch; axis i: ``Di``); give names where sizes differ.
    """
    graph = _current()
    name = name or f"x{len(graph.placeholders)}"
    return graph.add_placeholder(tuple(_dim(d, axis) for axis, d in enumerate(shape)), dtype, name)


def _dim(size: Any, axis: int) -> Dim:
    if size is None:
        return symbol("N" if axis == 0 else f"D{axis}")
    return symbol(size) if isinstance(size, str) else size


def _current() -> Graph:
    for builder in reversed(context.builders):
        if isinstance(builder.front, Graph):
            return builder.front
    raise GraphError("placeholder: no graph is being built; use it inside `with tw.Graph() as g:`")


class Session:
    """Runs parts of a graph. ``run`` gives NumPy arrays; programs are compiled once per set of fetches and shapes.

    ``devices`` says where (default: where the graph was built, see ``Graph``; else where its variables are).
    """

    def __init__(self, graph: Graph, *, devices: Any = None, verify: bool = False):
        if not isinstance(graph, Graph):
            raise TypeError(f"Session expects a tw.Graph, got {type(graph).__name__}")
        self.graph = graph
        self.device = None if devices is None else device(devices)  # the graph's may still be chosen
        self.verify = verify
        self._runners: dict[Any, tuple[GraphRunner, list[str]]] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Values of ``fetches`` (a tensor, a name, or a nest of them), in the same nest.

        ``feed_dict`` maps placeholders (or their names) to numbers. Only what the fetches need is run; an assignment
        takes effect when it is fetched (``g.updates`` fetches all).
        """
        leaves, structure = flatten(fetches)
        values = [self._value(leaf) for leaf in leaves]
        runner, names = self._runner(values)
        fed = self._fed(feed_dict or {})
        missing = [n for n in names if n not in fed]
        if missing:
            raise GraphError(
                f"run: placeholder {', '.join(map(repr, missing))} is needed by the fetches and was not fed; "
                "add it to feed_dict"
            )
        outputs = runner([as_array(fed[n], self.graph.placeholders[n].spec) for n in names])
        return unflatten(structure, [np.array(o.numpy()) for o in outputs])

    def _value(self, leaf: Any) -> Value:
        builder = self.graph.builder
        if isinstance(leaf, str):
            if leaf in self.graph.placeholders:
                return self.graph.placeholders[leaf]
            raise GraphError(
                f"fetch {leaf!r}: no placeholder has this name; fetch tensors, or one of {sorted(self.graph.placeholders)}"
            )
        if isinstance(leaf, Variable):
            state = builder.variables.get(id(leaf))
            return state.output if state is not None else leaf._own
        value = leaf._own if isinstance(leaf, Tensor) else leaf
        if not isinstance(value, SymbolicValue) or value.builder is not builder:
            raise GraphError(f"fetch {leaf!r} is not a tensor of this graph; build it inside `with graph:`")
        return value

    def _fed(self, feed_dict: Mapping[Any, Any]) -> dict[str, Any]:
        fed = {}
        for key, data in feed_dict.items():
            name = key if isinstance(key, str) else getattr(getattr(key, "_own", key), "name", None)
            if name not in self.graph.placeholders:
                raise GraphError(
                    f"feed_dict: {key!r} is not a placeholder of this graph; it has {sorted(self.graph.placeholders)}"
                )
            fed[name] = data
        return fed

    def _runner(self, values: list[Value]) -> tuple[GraphRunner, list[str]]:
        where = self.device or self.graph.device
        key = (tuple(id(v) for v in values), len(self.graph.builder.graph.nodes), where)
        known = self._runners.get(key)
        if known is None:
            part, names = self._part(values)
            variables = [s.variable for s in part.state]
            known = self._runners[key] = (GraphRunner(part, variables, where, verify=self.verify), names)
        return known

    def _part(self, values: list[Value]) -> tuple[IRGraph, list[str]]:
        """The part of the graph that the fetches need, with the assignments among them."""
        whole = self.graph.builder.graph
        fetched = {id(v) for v in values}
        state = [
            State(s.name, s.input, s.output if id(s.output) in fetched or _advances(s) else s.input, s.variable)
            for s in whole.state
        ]
        for v in values:  # an assignment that a later one in the graph replaced
            if v.owner is not None and v.producer is not None:
                for s in state:
                    if s.variable is v.owner and not s.written:
                        s.output = v
        nodes = _needed(whole, [*values, *(s.output for s in state if s.written)])
        used = {v for node in nodes for v in node.inputs} | set(values)
        names = self._inputs(nodes, used)
        state = [s for s in state if s.written or s.input in used]
        state = [s for s in state if not _advances(s) or any(s.input in n.inputs for n in nodes)]
        return IRGraph(whole.name, [self.graph.placeholders[n] for n in names], nodes, list(values), state), names

    def _inputs(self, nodes: list[Node], used: set[Value]) -> list[str]:
        """Names of the placeholders whose numbers are used, or whose sizes are."""
        placeholders = self.graph.placeholders
        names = [n for n, v in placeholders.items() if v in used]
        known = {s for n in names for d in placeholders[n].shape for s in symbols_in(d)}
        sizes = {s for node in nodes for d in _dims(node) for s in symbols_in(d)}
        for name, value in placeholders.items():
            brings = {s for d in value.shape for s in symbols_in(d)}
            if name not in names and brings & (sizes - known):
                names.append(name)
                known |= brings
        return names


def _dims(node: Node) -> list[Dim]:
    """The dimensions that a node's types and attributes mention."""
    attributes = [a for attr in node.attrs.values() for a in flatten(attr)[0] if isinstance(a, Sym)]
    return [*attributes, *(d for v in node.outputs for d in v.shape)]


def _advances(state: State) -> bool:
    """Whether a variable moves on by itself whenever it is used: the random generator."""
    return bool(getattr(state.variable, "advances", False)) and state.written


def _needed(graph: IRGraph, roots: Iterable[Value]) -> list[Any]:
    wanted = set(roots)
    kept = []
    for node in reversed(graph.nodes):
        if any(v in wanted for v in node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]
