"""Running through an ONNX graph once, building ours: one row per operator, an environment of names.

environment:  name -> Value (in the graph being built) or Known (a constant, a shape)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto

from twofold.base.dims import Dim, parse_dim, substitute, symbol, symbols_in
from twofold.base.dtypes import DType, as_dtype
from twofold.base.errors import FormatError, ShapeError, TwofoldError, UnsafeFileError, UnsupportedOpError
from twofold.io.onnx.common import DOMAIN, MAX_NESTING, STANDARD, from_onnx, read_attribute
from twofold.io.onnx.load.call import Call
from twofold.io.onnx.load.known import Known, fold
from twofold.io.onnx.load.reader import TensorReader
from twofold.io.onnx.load.rows import ROWS, check_arity
from twofold.ir import OPS, Builder, Spec, State, Value, bind, recording
from twofold.ir.builder import SymbolicValue, current_builder
from twofold.ops import identity
from twofold.ops.convert import dim_value
from twofold.ops.movement import reshape, stack

MAX_BYTES = 1 << 40  # of one value: a network that computes a terabyte at once is a mistake or an attack
FAULTS = (ValueError, TypeError, KeyError, IndexError, OverflowError, ArithmeticError, AttributeError, RecursionError,
           MemoryError, AssertionError, NotImplementedError)  # fmt: skip


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


__all__ = ["FAULTS", "Loader"]
