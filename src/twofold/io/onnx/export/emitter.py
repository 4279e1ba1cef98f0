"""Making a GraphProto: unique names, nodes, initializers, and shapes as tensors where dims are symbolic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from twofold.base.dims import Dim, Sym, solve, symbols_in
from twofold.base.errors import GraphError
from twofold.io.onnx.common import DOMAIN, TO_ONNX, write_attribute
from twofold.ir import Graph, Node, Spec, Value


def tensor(array: np.ndarray, name: str) -> TensorProto:
    """An array as raw little-endian bytes."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def value_info(name: str, spec: Spec) -> ValueInfoProto:
    """Type and shape of a named value; symbolic dims become ``dim_param``."""
    shape = [str(d) if isinstance(d, Sym) else int(d) for d in spec.shape]
    return helper.make_tensor_value_info(name, TO_ONNX[spec.dtype], shape)


class Emitter:
    """Collects the parts of one GraphProto. A sub-graph's emitter has a ``parent``: names are unique over the whole
    model, and constants and sizes live in the outermost graph, whose names ONNX lets sub-graphs see."""

    def __init__(self, graph: Graph, parent: Emitter | None = None, *, portable: bool = True):
        self.graph = graph
        self.parent = parent
        self.root: Emitter = parent.root if parent else self
        self.portable = portable
        self.names: dict[Value, str] = {}
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.infos: list[ValueInfoProto] = []
        self.described: set[str] = set()  # values that have a ValueInfoProto
        self.uses_domain = False
        self.scope = ""
        if parent is None:
            self._taken: dict[str, int] = {}
            self._constants: dict[Any, str] = {}
            self._sizes: dict[Dim, str] = {}

    # -- names -----------------------------------------------------------------------------------------------------
    def fresh(self, hint: str) -> str:
        """A name nobody has, like ``hint``."""
        taken = self.root._taken
        count = taken.get(hint, 0)
        name = hint
        while name in taken:
            name = f"{hint}_{count}"
            count += 1
        taken[hint] = max(count, 1)
        taken.setdefault(name, 1)
        return name

    def name(self, value: Value) -> str:
        """The name of a value that has been emitted."""
        if value in self.names:
            return self.names[value]
        if self.parent is None:
            raise GraphError(f"{value!r} is used before it is made; verify the graph")
        return self.parent.name(value)

    # -- parts -----------------------------------------------------------------------------------------------------
    def op(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        """Add a node; the name of its output, or a tuple of them if ``outputs`` is more than one."""
        stem = f"{self.scope}/{op_type}" if self.scope else op_type
        label = self.fresh(stem)
        results = [self.fresh(f"{label}:{i}" if outputs > 1 else f"{label}:out") for i in range(outputs)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), results, name=label, domain=domain, **attrs))
        return results[0] if outputs == 1 else tuple(results)

    def own(self, node: Node, inputs: Sequence[str]) -> tuple[str, ...]:
        """A node of our own domain: the op under its own name, attributes exactly kept."""
        self.root.uses_domain = True
        count = len(node.outputs)
        out = self.op(node.op.name, *inputs, outputs=count, domain=DOMAIN)
        attributes = [write_attribute(k, v) for k, v in sorted(node.attrs.items())]
        self.nodes[-1].attribute.extend(attributes)
        return out if count > 1 else (out,)

    def constant(self, data: Any, dtype: Any = None, hint: str = "const") -> str:
        """An initializer; equal small ones are shared."""
        array = np.asarray(data, dtype)
        root = self.root
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= 256 else None
        if key is not None and key in root._constants:
            return root._constants[key]
        name = self.fresh(hint)
        root.initializers.append(tensor(array, name))
        if key is not None:
            root._constants[key] = name
        return name

    def ints(self, *numbers: int) -> str:
        """A one-dimensional int64 initializer."""
        return self.constant(np.array(numbers, np.int64))

    # -- sizes -----------------------------------------------------------------------------------------------------
    def dims(self, shape: Sequence[Dim]) -> str:
        """A shape as a one-dimensional int64 tensor, computed from the inputs' shapes where it is symbolic."""
        if not any(isinstance(d, Sym) for d in shape):
            return self.ints(*shape)  # type: ignore[arg-type]
        parts = [self.size(d) for d in shape]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def size(self, dim: Dim) -> str:
        """One dim as an int64 tensor of shape (1,)."""
        root = self.root
        if isinstance(dim, int):
            return root.ints(dim)
        if dim not in root._sizes:
            root._sizes[dim] = root._symbol(dim) if _is_name(dim) else root._arithmetic(dim)
        return root._sizes[dim]

    def _arithmetic(self, dim: Sym) -> str:
        terms = []
        for monomial, coefficient in dim.terms.items():
            factors = [self._atom(a) for a in monomial]
            if coefficient != 1 or not factors:
                factors.append(self.ints(coefficient))
            terms.append(_fold(self, "Mul", factors))
        return _fold(self, "Add", terms)

    def _atom(self, atom: Any) -> str:
        if isinstance(atom, str):
            return self.size(Sym({(atom,): 1}))
        return self.op("Div", self.size(atom.numerator), self.size(atom.denominator))  # sizes: truncation is floor

    def _symbol(self, dim: Sym) -> str:
        """A symbol read off the shape of the first input that tells it."""
        (wanted,) = symbols_in(dim)
        for value in self.graph.inputs:
            for axis, known in enumerate(value.shape):
                if isinstance(known, Sym) and symbols_in(known) == {wanted} and solve(known, 0) != {}:
                    size = self.op("Shape", self.names[value], start=axis, end=axis + 1)
                    offset, scale = known.terms.get((), 0), known.terms[(wanted,)]
                    size = self.op("Sub", size, self.ints(offset)) if offset else size
                    return self.op("Div", size, self.ints(scale)) if scale != 1 else size
        raise GraphError(f"size {dim} is not a dimension of any input of graph {self.graph.name!r}; make it one")

    # -- the end -----------------------------------------------------------------------------------------------------
    def proto(self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> GraphProto:
        """The parts as a GraphProto."""
        return helper.make_graph(
            self.nodes, self.graph.name, list(inputs), list(outputs), self.initializers, value_info=self.infos
        )  # fmt: skip


def _is_name(dim: Sym) -> bool:
    return list(dim.terms.values()) == [1] and all(len(m) == 1 and isinstance(m[0], str) for m in dim.terms)


def _fold(e: Emitter, op_type: str, names: Sequence[str]) -> str:
    total = names[0]
    for name in names[1:]:
        total = e.op(op_type, total, name)
    return total
