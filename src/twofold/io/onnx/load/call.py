"""One node as the rows see it: inputs as values or as what is known of them, attributes by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, helper

from twofold.base.dims import Sym
from twofold.base.errors import FormatError, UnsupportedOpError
from twofold.io.onnx.load.known import Known
from twofold.ir import Value

if TYPE_CHECKING:
    from twofold.io.onnx.load.engine import Loader

_REQUIRED: Any = object()


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
