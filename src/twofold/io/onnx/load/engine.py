"""Running through an ONNX graph once, building ours: one row per operator, an environment of names.

environment:  name -> Value (in the graph being built) or Known (a constant, a shape)
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, helper

from twofold.base.dims import Dim, Sym, parse_dim, substitute, symbol, symbols_in
from twofold.base.dtypes import DType, as_dtype
from twofold.base.errors import FormatError, ShapeError, TwofoldError, UnsafeFileError, UnsupportedOpError
from twofold.io.onnx.common import DOMAIN, MAX_NESTING, from_onnx, read_attribute
from twofold.io.onnx.load.known import Known, fold
from twofold.io.onnx.load.reader import TensorReader
from twofold.io.onnx.load.rows import ROWS, check_arity
from twofold.ir import OPS, Builder, Spec, State, Value, bind, recording
from twofold.ir.builder import SymbolicValue, current_builder
from twofold.ops import identity
from twofold.ops.convert import dim_value
from twofold.ops.movement import reshape, stack

MAX_NODES = 1_000_000  # after functions are expanded
MAX_BYTES = 1 << 40  # of one value: a network that computes a terabyte at once is a mistake or an attack
STANDARD = ("", "ai.onnx")
_REQUIRED: Any = object()
FAULTS = (ValueError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError, AttributeError, RecursionError,
           MemoryError, AssertionError, NotImplementedError)  # fmt: skip


class Call:
    """One node being read: its inputs and attributes, as rows want them."""

    def __init__(self, loader: Loader, node: NodeProto, inputs: list[Any], opset: int, environment: Mapping[str, Any]):
        self.loader, self.node, self.inputs, self.opset, self.environment = loader, node, inputs, opset, environment
        self.op = node.op_type
        self.attributes = {a.name: a for a in node.attribute}

    def __len__(self) -> int:
        return len(self.inputs)

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def value(self, i: int) -> Value:
        """Input ``i`` as a value of the graph."""
        if not self.has(i):
            raise FormatError(f"input {i} is missing")
        return self.loader.enter(self.inputs[i])

    def maybe(self, i: int) -> Value | None:
        """Input ``i`` as a value, or None."""
        return self.value(i) if self.has(i) else None

    def values(self) -> list[Value]:
        """All inputs as values."""
        return [self.value(i) for i in range(len(self.inputs))]

    def known(self, i: int) -> np.ndarray | None:
        """The content of input ``i`` (an array, of dims if symbolic); None if it is not given."""
        if not self.has(i):
            return None
        given = self.inputs[i]
        if not isinstance(given, Known):
            raise UnsupportedOpError(
                f"input {self.node.input[i]!r} must be known when the file is loaded: a constant, or computed from "
                "shapes. If it is an input of the model, fix it with constants={name: array}"
            )
        return given.array

    def number(self, i: int, default: Any = None) -> Any:
        """Input ``i`` as one known number."""
        array = self.known(i)
        if array is None:
            return default
        if array.size != 1:
            raise FormatError(f"input {i} has shape {array.shape}; expected one number")
        return array.reshape(())[()] if array.dtype == object else array.item()

    def ints_of(self, i: int, attribute: str, default: Any = _REQUIRED) -> Any:
        """Dims that stand in input ``i``, or (older operator sets) in an attribute."""
        array = self.known(i)
        if array is not None:
            if array.ndim > 1 or array.dtype.kind not in "iuO":
                raise FormatError(f"input {i} holds {array.dtype} of shape {array.shape}; expected a list of integers")
            return tuple(d if isinstance(d, Sym) else int(d) for d in array.reshape(-1))
        found = self.attr(attribute, default)
        return found if found is None or found is default else tuple(found)

    def attr(self, name: str, default: Any = _REQUIRED) -> Any:
        """An attribute's value: a number, string, list, or proto."""
        attribute = self.attributes.get(name)
        if attribute is None:
            if default is _REQUIRED:
                raise FormatError(f"attribute {name!r} is missing")
            return default
        out = helper.get_attribute_value(attribute)
        if isinstance(out, bytes):
            return out.decode("utf-8", "replace")
        return out if isinstance(out, (int, float, str)) or hasattr(out, "DESCRIPTOR") else list(out)

    def outputs(self) -> int:
        """How many outputs the file names."""
        return len(self.node.output)


class Loader:
    """Reads one model into one graph."""

    def __init__(self, model: ModelProto, tensors: TensorReader, parameters: Iterable[str] | None, name: str):
        self.model = model
        self.tensors = tensors
        self.parameters = None if parameters is None else set(parameters)
        self.opsets = {o.domain if o.domain not in STANDARD else "": o.version for o in model.opset_import}
        self.functions: dict[tuple[str, str], FunctionProto] = {(f.domain, f.name): f for f in model.functions}
        self.builder = Builder(name)
        self.state: dict[str, tuple[State, np.ndarray]] = {}
        self.depth = 0
        self._symbols = 0

    # -- names and values ------------------------------------------------------------------------------------------
    def enter(self, given: Any) -> Value:
        """What is known as a value of the graph: state for a parameter, else a constant or sizes."""
        if isinstance(given, Value):
            return given
        if not isinstance(given, Known):
            raise UnsupportedOpError("sequences, optionals and maps are not supported; expected a tensor")
        if given.value is None:
            with recording(self.builder):
                given.value = self._entered(given)
        return given.value

    def inside(self, given: Any) -> Value:
        """The same as a value of the sub-graph being recorded, also where it only passes an outer one on."""
        value = self.enter(given)
        return value if getattr(value, "builder", None) is current_builder() else identity(value)

    def _entered(self, given: Known) -> Value:
        if given.parameter:
            return self.add_state(given).input
        if given.symbolic:
            return reshape(stack([dim_value(d) for d in given.array.flat]), given.array.shape)
        value = self.builder.constant(given.array)
        value.name = given.name or None
        return value

    def add_state(self, given: Known) -> State:
        """A parameter of the graph, read and not (yet) written."""
        spec = Spec(given.array.shape, from_numpy(given.array))
        given.value = SymbolicValue(self.builder, spec, None, 0, given.name)
        state = State(given.name, given.value, given.value)
        self.builder.graph.state.append(state)
        self.state[given.name] = (state, given.array)
        return state

    def initializers(self, graph: GraphProto) -> dict[str, Known]:
        """The constants of a graph by name. Which are parameters: those listed, else floating arrays of any rank."""
        if graph.sparse_initializer:
            raise UnsupportedOpError("sparse initializers are not supported")
        found = {}
        for tensor in graph.initializer:
            array = self.tensors(tensor, f"initializer {tensor.name!r}")
            listed = self.parameters
            is_parameter = (
                tensor.name in listed if listed is not None else array.ndim > 0 and from_numpy(array).is_floating
            )
            found[tensor.name] = Known(array, tensor.name, is_parameter)
        return found

    def spec(self, kind: TypeProto, what: str) -> Spec:
        """The spec of a declared type; sizes that are not said become symbols."""
        if not kind.HasField("tensor_type"):
            raise UnsupportedOpError(f"{what}: only tensors are supported, not {kind.WhichOneof('value')}")
        tensor = kind.tensor_type
        if not tensor.HasField("shape"):
            raise UnsupportedOpError(f"{what}: its rank is not declared")
        dims = [self._dim(d) for d in tensor.shape.dim]
        return Spec(tuple(dims), from_onnx(tensor.elem_type, what))

    def _dim(self, dim: Any) -> Dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            return dim.dim_value
        text = dim.dim_param
        if text and len(text) <= 256:
            try:
                return parse_dim(text)
            except ShapeError:
                return symbol(re.sub(r"\W", "_", f"_{text}" if text[0].isdigit() else text, flags=re.ASCII))
        self._symbols += 1
        return symbol(f"d{self._symbols}")

    # -- running -----------------------------------------------------------------------------------------------------
    def run(self, nodes: Iterable[NodeProto], environment: dict[str, Any], opsets: Mapping[str, int]) -> None:
        """Every node in order; results go into ``environment``."""
        for node in nodes:
            try:
                results = self._node(node, environment, opsets)
                self._bind(node, results, environment)
            except TwofoldError as error:
                raise self._located(error, node) from error
            except FAULTS as error:
                raise FormatError(f"{_where(node)}: malformed: {type(error).__name__}: {error}") from error

    def _node(self, node: NodeProto, environment: dict[str, Any], opsets: Mapping[str, int]) -> Any:
        inputs = [None if name == "" else _lookup(environment, name) for name in node.input]
        domain = "" if node.domain in STANDARD else node.domain
        call = Call(self, node, inputs, opsets.get(domain, 1), environment)
        function = self.functions.get((node.domain, node.op_type))
        if function is not None:
            return self._function(function, call)
        if domain == DOMAIN:
            return own_op(call)
        if domain == "" and call.opset < 7 and call.attr("broadcast", 0) and call.attr("axis", None) is not None:
            call.inputs[1] = self._laid(call)
        known = fold(call) if domain == "" else None
        return known if known is not None else ROWS[domain, node.op_type](call)

    def _laid(self, call: Call) -> Value:
        """Before operator set 7 the second operand was laid along the first from dimension ``axis`` on."""
        x, y = call.value(0), call.value(1)
        return reshape(y, (*y.shape, *(1,) * (x.ndim - call.attr("axis") % x.ndim - y.ndim)))

    def _function(self, function: FunctionProto, call: Call) -> tuple[Any, ...]:
        """A function of the file, expanded in place."""
        environment: dict[str, Any] = dict.fromkeys(function.input)
        environment.update(zip(function.input, call.inputs))
        defaults = {a.name: a for a in function.attribute_proto}
        given = {**defaults, **call.attributes}
        opsets = {("" if o.domain in STANDARD else o.domain): o.version for o in function.opset_import}
        with self.nested():
            self.run((_with_attributes(n, given) for n in function.node), environment, opsets)
        return tuple(_lookup(environment, name) for name in function.output)

    def nested(self) -> _Nesting:
        """One level further in; UnsafeFileError beyond the limit."""
        return _Nesting(self)

    def _bind(self, node: NodeProto, results: Any, environment: dict[str, Any]) -> None:
        results = results if isinstance(results, tuple) else (results,)
        if len(node.output) > len(results) and any(node.output[len(results) :]):
            raise UnsupportedOpError(f"output {len(results)} of {node.op_type} is not supported")
        for name, result in zip(node.output, results):
            if not name:
                continue
            if name in environment and not isinstance(environment, _Scope):
                raise FormatError(f"two nodes make {name!r}")
            if isinstance(result, Value) and _least_bytes(result.spec) > MAX_BYTES:
                raise UnsafeFileError(f"result {name!r} would be {result.spec}: more than {MAX_BYTES} bytes")
            environment[name] = result

    def _located(self, error: TwofoldError, node: NodeProto) -> TwofoldError:
        """The error with the node named once; what a sound file cannot cause is a FormatError."""
        if getattr(error, "in_file", False):
            return error
        kind: type[TwofoldError] = type(error) if isinstance(error, (FormatError, UnsupportedOpError)) else FormatError
        located = kind(f"{_where(node)}: {error}")
        located.in_file = True  # type: ignore[attr-defined]
        return located

    def subgraph(self, graph: GraphProto, inputs: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]:
        """The results of a sub-graph for ``inputs``, recorded by whichever builder records now."""
        environment = _Scope(outer)
        environment.update(self.initializers(graph))
        environment.update(zip([i.name for i in graph.input], inputs, strict=True))
        with self.nested():
            self.run(graph.node, environment, self.opsets)
        return [_lookup(environment, o.name) for o in graph.output]


class _Scope(dict):
    """Names of a sub-graph, which may hide those of the graphs around it."""


class _Nesting:
    def __init__(self, loader: Loader):
        self.loader = loader

    def __enter__(self) -> None:
        self.loader.depth += 1
        if self.loader.depth > MAX_NESTING:
            raise UnsafeFileError(f"graphs are nested more than {MAX_NESTING} deep")

    def __exit__(self, *_: Any) -> None:
        self.loader.depth -= 1


def _least_bytes(spec: Spec) -> int:
    """Bytes of a value when every symbolic size is 1."""
    size = spec.nbytes
    return size if isinstance(size, int) else int(substitute(size, dict.fromkeys(symbols_in(size), 1)))


def _lookup(environment: Mapping[str, Any], name: str) -> Any:
    if name not in environment:
        raise FormatError(f"input {name!r} is made by no earlier node")
    return environment[name]


def _where(node: NodeProto) -> str:
    label = node.name or (node.output[0] if node.output else "")
    return f"node {label!r} ({node.domain + '.' if node.domain else ''}{node.op_type})"


def _with_attributes(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    """A function's node with references to the function's attributes filled in."""
    if not any(a.ref_attr_name for a in node.attribute):
        return node
    out = NodeProto()
    out.CopyFrom(node)
    del out.attribute[:]
    for attribute in node.attribute:
        source = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if source is not None:
            copy = out.attribute.add()
            copy.CopyFrom(source)
            copy.name = attribute.name
    return out


def own_op(call: Call) -> Any:
    """A node of our own domain: the op of that name, its type inferred again."""
    op = OPS[call.op]
    check_arity(op, len(call))
    attrs = {a.name: read_attribute(a) for a in call.node.attribute}
    return bind(op, *call.values(), **attrs)


def from_numpy(array: np.ndarray) -> DType:
    """Our dtype of an array."""
    return as_dtype(array.dtype)


def check_expansion(model: ModelProto) -> None:
    """UnsafeFileError if expanding the file's functions would never end, or give an absurd number of nodes."""
    functions = {(f.domain, f.name): f for f in model.functions}
    known: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > MAX_NESTING:
            raise UnsafeFileError(f"functions are nested more than {MAX_NESTING} deep")
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in known:
                known[key] = size(functions[key].node, depth + 1)
            total += 1 + known.get(key, 0)
            total += sum(size(a.g.node, depth + 1) for a in node.attribute if a.HasField("g"))
        return total

    if size(model.graph.node, 0) > MAX_NODES:
        raise UnsafeFileError(f"more than {MAX_NODES} nodes once functions are expanded")


def all_nodes(model: ModelProto) -> Iterable[tuple[NodeProto, int]]:
    """Every node of a model, sub-graphs and functions included, with its depth."""
    queue = deque((n, 0) for nodes in (model.graph.node, *(f.node for f in model.functions)) for n in nodes)
    while queue:
        node, depth = queue.popleft()
        yield node, depth
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            queue.extend((n, depth + 1) for g in graphs for n in g.node)


def refuse_unsupported(model: ModelProto) -> None:
    """UnsupportedOpError listing every operator without a row, with the nodes that use it."""
    functions = {(f.domain, f.name) for f in model.functions}
    missing: dict[str, list[str]] = {}
    for node, depth in all_nodes(model):
        if depth > MAX_NESTING:
            raise UnsafeFileError(f"graphs are nested more than {MAX_NESTING} deep")
        domain = "" if node.domain in STANDARD else node.domain
        known = (domain, node.op_type) in ROWS or (node.domain, node.op_type) in functions
        if not known and not (domain == DOMAIN and node.op_type in OPS):
            label = f"{domain}.{node.op_type}" if domain else node.op_type
            missing.setdefault(label, []).append(node.name or (node.output[0] if node.output else "?"))
    if missing:
        rows = [
            f"{op} (node{'s' if len(n) > 1 else ''} {', '.join(n[:4])}{', ...' if len(n) > 4 else ''})"
            for op, n in sorted(missing.items())
        ]
        raise UnsupportedOpError(f"operators without a translation: {'; '.join(rows)}")


__all__ = ["FAULTS", "Call", "Loader", "all_nodes", "check_expansion", "refuse_unsupported"]
