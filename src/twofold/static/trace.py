"""Tracing: a Python function is run once on symbolic tensors, and what it does becomes a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twofold.base.tree import Structure, flatten, paths, unflatten
from twofold.ir import Builder, Graph, Spec, Value, recording
from twofold.ir.assumed import Place, changes, differing, fixed, kept
from twofold.ir.builder import SymbolicValue
from twofold.ir.text import print_graph
from twofold.tensor.tensor import Tensor, unwrap
from twofold.tensor.variable import Variable


@dataclass
class Traced:
    """A traced function: the graph, and how its inputs and outputs stand in Python's structures.

    ``gradients`` are leaves whose ``.grad`` the function changed; their new gradients are the graph's last outputs
    (``None`` at those it cleared). ``guards`` are what the trace assumed: (object, attribute, value).
    """

    graph: Graph
    variables: list[Any]
    outputs: Structure
    constants: dict[int, Any]  # position among the output leaves -> a leaf that is not a tensor
    returned: int  # how many graph outputs the function returns
    gradient_inputs: list[Any] = field(default_factory=list)
    gradients: list[tuple[Any, bool]] = field(default_factory=list)
    guards: list[tuple[Any, str, Any]] = field(default_factory=list)
    assumed: list[tuple[Any, str, dict[str, Any]]] = field(default_factory=list)  # object, its name, its ``assumed()``
    changes: int = 0  # up to which of all changes it is known that they hold
    differentiable: list[bool] = field(default_factory=list)
    forward_nodes: int = 0

    @functools.cached_property
    def replaced(self) -> list[Any]:
        """Leaves whose gradient the program replaces without having read it."""
        read = set(map(id, self.gradient_inputs))
        return [leaf for leaf, _ in self.gradients if id(leaf) not in read]

    @functools.cached_property
    def any_differentiable(self) -> bool:
        """Whether gradients may flow through an output."""
        return any(self.differentiable)

    @functools.cached_property
    def is_one_tensor(self) -> bool:
        """Whether a call returns one tensor and changes no gradient."""
        return self.returned == 1 and self.outputs.kind == "leaf" and not self.constants and not self.gradients

    def same_program(self, other: Traced) -> bool:
        """Whether both are the same computation on the same variables, so that a program for one serves the other."""
        facts = lambda t: (
            [v.requires_grad for v in t.graph.all_inputs], t.outputs, fixed(t.constants), t.returned, t.differentiable,
            t.forward_nodes, fixed([t.variables, t.gradient_inputs, t.gradients]), _gradient_flow(t.graph),
        )  # fmt: skip
        if facts(self) != facts(other) or _has_rules(self.graph) or _has_rules(other.graph):
            return False
        return print_graph(self.graph) == print_graph(other.graph)

    def without(self, places: Sequence[Place]) -> None:
        """Take these no longer for granted."""
        left_out = {(id(thing), name) for thing, name in places}
        self.assumed = [
            (thing, label, {n: v for n, v in before.items() if (id(thing), n) not in left_out})
            for thing, label, before in self.assumed
        ]

    def changed_places(self) -> list[Place]:
        """What it took for granted and is otherwise now."""
        return [(thing, name) for thing, _, before in self.assumed for name in differing(before, thing.assumed())]


def _gradient_flow(graph: Graph) -> list[Any]:
    """Which values gradients reach: a text does not tell what was computed inside ``no_grad``."""
    return [
        ([(v.requires_grad, v.detached) for v in node.outputs], [_gradient_flow(g) for g in node.graphs()])
        for node in graph.nodes
    ]


def _has_rules(graph: Graph) -> bool:
    """Whether a node has a Python function among its attributes, of which a text says the name alone."""
    items = [item for node in graph.nodes for item in node.attrs.values()]
    return any(_has_rules(i) if isinstance(i, Graph) else callable(i) for i in items)


def is_array_like(leaf: Any) -> bool:
    """Leaves that become inputs; every other leaf is a fixed part of the trace."""
    return isinstance(leaf, (Tensor, Value)) or hasattr(leaf, "__array_interface__")


def trace(
    function: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any] | None = None,
    *,
    specs: Sequence[Spec] | None = None,
    requires_grad: Sequence[bool] = (),
    name: str | None = None,
    names: Sequence[str] | None = None,
    keep_gradients: bool = True,
) -> Traced:
    """Run ``function`` on symbolic tensors in place of the arrays among its arguments.

    ``specs`` are the inputs' (their dims may be symbolic); by default those of the arrays given. Gradients left in
    ``.grad`` become outputs unless ``keep_gradients`` is False.
    """
    leaves, structure = flatten((args, kwargs or {}))
    places = [i for i, leaf in enumerate(leaves) if is_array_like(leaf)]
    if specs is None:
        specs = [spec_of(leaves[i]) for i in places]
    names = names or argument_names(function, structure, places)
    builder = Builder(name or getattr(function, "__name__", type(function).__name__).strip("<>"))
    for place, spec, label, flag in zip(places, specs, names, [*requires_grad, *[False] * len(places)]):
        value = builder.input(spec, label)
        value.requires_grad = flag and spec.dtype.is_floating
        leaves[place] = Tensor(value)
    with recording(builder):
        call_args, call_kwargs = unflatten(structure, leaves)
        result = function(*call_args, **call_kwargs)
        return _finish(builder, result, keep_gradients)


def _finish(builder: Builder, result: Any, keep_gradients: bool) -> Traced:
    leaves, structure = flatten(result)
    constants = {i: leaf for i, leaf in enumerate(leaves) if not is_array_like(leaf)}
    values = [builder.lift(unwrap(leaf)) if isinstance(leaf, (Tensor, Value)) else builder.constant(leaf)
              for leaf in leaves if is_array_like(leaf)]  # fmt: skip
    cells = list(builder.gradients.values())
    changed = [(c.leaf, c.now) for c in cells if not c.read or c.now is not c.entry] if keep_gradients else []
    grads = [builder.lift(now.value) for _, now in changed if now is not None]
    graph, known_to_hold = builder.finish([*values, *grads]), changes()  # read ahead: what changes from here on is later
    for state in graph.state:
        builder.watch(state.variable, state.name)
    return Traced(
        graph=graph,
        variables=[s.variable for s in graph.state],
        outputs=structure,
        constants=constants,
        returned=len(values),
        gradient_inputs=[c.leaf for c in cells if c.entry is not None],
        gradients=[(leaf, now is not None) for leaf, now in changed],
        guards=[*builder.guards, *((c.leaf, "_grad", None) for c in cells if c.read and c.entry is None)],
        assumed=[(thing, name, kept(before, thing.assumed())) for thing, name, before in builder.watched.values()],
        changes=known_to_hold,
        differentiable=[
            v.requires_grad and (v.producer is None or id(v.producer) not in builder.spent) for v in values
        ],
        forward_nodes=len(graph.nodes),
    )


def spec_of(leaf: Any) -> Spec:
    """Shape and dtype of an array-like leaf."""
    from twofold.base.dtypes import as_dtype

    if isinstance(leaf, Variable):
        return leaf._own.spec
    if isinstance(leaf, Tensor):
        return leaf.value.spec
    if isinstance(leaf, Value):
        return leaf.spec
    return Spec(tuple(int(d) for d in leaf.shape), as_dtype(leaf.dtype))


def argument_names(function: Callable[..., Any], structure: Structure, places: Sequence[int]) -> list[str]:
    """What to call each input: the parameter's name, with its place inside a nested argument."""
    import inspect

    target = function.forward if hasattr(function, "forward") else function  # a Module's own signature
    positional, keyword = structure.children
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    roots: list[str] = []
    for i in range(len(positional.children)):
        if i < len(parameters) and parameters[i].kind is not parameters[i].VAR_POSITIONAL:
            roots.append(parameters[i].name)
        else:
            roots.append(f"arg{i}")
    out: list[str] = []
    for root, child in zip([*roots, *map(str, keyword.keys)], [*positional.children, *keyword.children]):
        out += paths(child, root)
    return [out[i] for i in places]


def is_symbolic(tensor: Any) -> bool:
    """Whether a tensor belongs to a graph being built."""
    return isinstance(tensor, Tensor) and isinstance(tensor._own, SymbolicValue)


__all__ = ["Traced", "argument_names", "is_array_like", "is_symbolic", "spec_of", "trace"]
