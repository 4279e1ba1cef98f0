"""The things a graph is made of.

    Graph  = inputs, state, nodes (in order), outputs
    Node   = op, inputs, attrs, outputs        each output is assigned once
    Value  = (shape, dtype), its producer
    Spec   = shape, dtype                      a dim is an int or a symbolic size

Eager arrays are values too (a subclass with a buffer, in ``twofold.tensor``): the record of what produced them is the
same ``Node``, so one gradient algorithm serves both lives of a program.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twofold.base.dims import Dim, Sym, symbols_in
from twofold.base.dtypes import DType
from twofold.base.shapes import Shape, product
from twofold.ir.operators import ArrayOperators

if TYPE_CHECKING:
    from twofold.ir.op import Op


serials = itertools.count()


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a value before it is computed. Prints as ``f32[N,3]``."""

    shape: Shape
    dtype: DType

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.short}[{','.join(map(str, self.shape))}]"


class Value(ArrayOperators):
    """One typed value. ``producer`` is the node that makes it (None: an input), ``index`` which of its outputs.

    ``requires_grad`` says that gradients may flow through it; a *leaf* (``owner`` set) is where ``backward`` leaves
    them. ``detached`` values let no gradient pass.
    """

    __slots__ = ("__weakref__", "_owner", "detached", "index", "name", "producer", "requires_grad", "spec")

    def __init__(self, spec: Spec, producer: Node | None = None, index: int = 0, name: str | None = None):
        self.spec = spec
        self.producer = producer
        self.index = index
        self.name = name
        self.requires_grad = False
        self.detached = False
        self._owner: weakref.ref[Any] | None = None

    @property
    def owner(self) -> Any:
        """The handle (a tensor, a variable) whose leaf this is. It holds the value, so the value does not hold it: no
        cycle keeps a dropped tensor's memory. None once the handle is gone: then nobody can read its gradient."""
        return None if self._owner is None else self._owner()

    @owner.setter
    def owner(self, handle: Any) -> None:
        self._owner = None if handle is None else weakref.ref(handle)

    @property
    def shape(self) -> Shape:
        return self.spec.shape

    @property
    def dtype(self) -> DType:
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        return len(self.spec.shape)

    @property
    def size(self) -> Dim:
        return self.spec.size

    @property
    def key(self) -> tuple[int, int]:
        """Identity for gradient book-keeping: the producing node and output number, or the leaf itself."""
        return (id(self), -1) if self.producer is None or self.owner is not None else (id(self.producer), self.index)

    def __repr__(self) -> str:
        return f"<{self.name or 'value'}: {self.spec}>"


class Node:
    """One application of an op.

    ``scope`` is the layer path in which it was made (``features.3.conv``), for messages; ``serial`` grows from node to
    node, and tells what was recorded after a moment from what was there before.
    """

    __slots__ = ("__weakref__", "attrs", "freed", "inputs", "op", "outputs", "scope", "serial")

    def __init__(self, op: Op, inputs: tuple[Value, ...], attrs: dict[str, Any], scope: str = ""):
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.scope = scope
        self.outputs: tuple[Value, ...] = ()
        self.freed = False
        self.serial = next(serials)

    @property
    def output(self) -> Value:
        """The only output."""
        (only,) = self.outputs
        return only

    def graphs(self) -> Iterator[Graph]:
        """Sub-graphs among the attributes (branches and bodies of control flow)."""
        return (a for a in self.attrs.values() if isinstance(a, Graph))

    def __repr__(self) -> str:
        where = f" in {self.scope}" if self.scope else ""
        return f"<{self.op.name}({', '.join(str(v.spec) for v in self.inputs)}){where}>"


@dataclass(slots=True, eq=False)
class State:
    """One variable of a graph: the value it has on entry and on exit. ``variable`` is None in a graph read from a file."""

    name: str
    input: Value
    output: Value
    variable: Any = None

    @property
    def written(self) -> bool:
        return self.output is not self.input


@dataclass(slots=True, eq=False)
class Graph:
    """A typed, single-assignment program: ``nodes`` in an order in which they can run."""

    name: str = "graph"
    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    state: list[State] = field(default_factory=list)

    @property
    def all_inputs(self) -> list[Value]:
        """Inputs, then the entry values of the state: what a program is called with."""
        return self.inputs + [s.input for s in self.state]

    @property
    def all_outputs(self) -> list[Value]:
        """Outputs, then the exit values of the state: what a program returns."""
        return self.outputs + [s.output for s in self.state]

    def symbols(self) -> set[str]:
        """Names of the symbolic dims of the inputs."""
        return {name for v in self.all_inputs for d in v.shape for name in symbols_in(d)}

    def unchanging(self) -> set[Value]:
        """Values made of constants and of state that the graph does not write: the same at call after call."""
        out = {s.input for s in self.state if not s.written}
        for node in self.nodes:
            if node.op.pure and node.op.kind != "control" and all(v in out for v in node.inputs):
                out.update(node.outputs)
        return out

    def users(self) -> dict[Value, list[Node]]:
        """Which nodes read each value."""
        out: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                out.setdefault(value, []).append(node)
        return out

    def __str__(self) -> str:
        from twofold.ir.text import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.inputs)} inputs, {len(self.nodes)} nodes, {len(self.outputs)} outputs>"


def bind_symbols(specs: list[Spec], shapes: list[tuple[int, ...]]) -> Mapping[str, int]:
    """Sizes of the symbols in ``specs`` when values of the given concrete shapes arrive (no checking of the rest)."""
    from twofold.base.dims import solve

    sizes: dict[str, int] = {}
    for spec, shape in zip(specs, shapes):
        for dim, size in zip(spec.shape, shape):
            if isinstance(dim, Sym):
                for name, value in (solve(dim, size) or {}).items():
                    sizes.setdefault(name, value)
    return sizes
