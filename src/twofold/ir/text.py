"""The text of a graph: ``print_graph`` writes it, ``parse_graph`` (in ``twofold.ir.parse``) reads it back.

    graph step(%x: f32[N,1,28,28]) {
      state %conv.weight: f32[6,1,5,5]
      %0 = conv(%x, %conv.weight) {strides=(1, 1), groups=1} : f32[N,6,24,24]  # features.0
      %1 = full() {shape=(), fill=0.5, dtype=f32} : f32[]
      %2 = cond(%p, %0) {
        true = graph(%a: f32[N,6,24,24]) {
          return %a
        },
        false = ...
      } : f32[N,6,24,24]
      next %conv.weight = %8
      return %2
    }

Grammar (white space is free; ``#`` starts a comment, which after a node's types is the layer path it was made in)::

    graph  = "graph" [name] "(" [input {"," input}] ")" "{" {state} {node} {next} "return" [value {"," value}] "}"
    input  = value ":" type
    state  = "state" value [string] ":" type             the string: the variable's name where it is not the value's
    node   = value {"," value} "=" op "(" [value {"," value}] ")" ["{" attr {"," attr} "}"] ":" type {"," type}
    next   = "next" value "=" value                      the value of a state on exit (unchanged if absent)
    value  = "%" name
    type   = dtype "[" [dim {"," dim}] "]"               f32[N,3], bool[], i64[2*N+1]
    attr   = name "=" item
    item   = int | float | string | "true" | "false" | "none" | dtype | name (a dim) | "<" dim ">"
           | "(" {item ","} ")" | graph | array
    array  = type "{" {number} "}" | type "sha256:" hex | type "base64:" text

Equal texts mean equal graphs: floats print exactly, large constants by digest (``full=True``: by content).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from twofold.base.dims import Sym
from twofold.base.dtypes import BY_SHORT, DType, as_dtype
from twofold.base.errors import GraphError
from twofold.ir.parse import parse_graph
from twofold.ir.values import Graph, Node, Spec, Value

INLINE_ELEMENTS = 16  # constants up to this size are written out
RESERVED = {*BY_SHORT, "true", "false", "none", "inf", "nan", "graph"}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")

__all__ = ["constants_of", "digest", "parse_graph", "print_attribute", "print_graph"]


def print_graph(graph: Graph, full: bool = False, *, bare: bool = False) -> str:
    """``graph`` as text. ``full`` writes large constants out (base64), so that ``parse_graph`` needs nothing else.

    ``bare`` leaves out all names and layer paths: two graphs that compute the same by the same steps then print alike.
    """
    return "\n".join(_Printer(full, bare).graph(graph, f"graph{'' if bare else _graph_name(graph.name)}"))


def print_attribute(item: Any, full: bool = False) -> str:
    """One attribute on one line (sub-graphs included), as it stands in a text; equal texts mean equal attributes."""
    return " ".join(_Printer(full, True).item(item))


def constants_of(graph: Graph) -> dict[str, np.ndarray]:
    """The large constants of a graph and its sub-graphs by digest: what ``parse_graph`` needs beside an elided text."""
    found: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        for item in node.attrs.values():
            if isinstance(item, Graph):
                found |= constants_of(item)
            elif isinstance(item, np.ndarray):
                found[digest(item)] = item
    return found


def digest(array: np.ndarray) -> str:
    """Names an array by its content: dtype, shape and bytes."""
    header = f"{array.dtype.name}{array.shape}".encode()
    return hashlib.sha256(header + _bytes(array)).hexdigest()[:32]


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _graph_name(name: str) -> str:
    return f" {name}" if _PLAIN_NAME.match(name) and name not in RESERVED else f" {json.dumps(name)}"


class _Printer:
    """Prints graphs as lists of lines; names are local to each graph."""

    def __init__(self, full: bool, bare: bool):
        self.full, self.bare = full, bare

    def graph(self, graph: Graph, head: str) -> list[str]:
        names = self.names(graph)
        inputs = ", ".join(f"{names[v]}: {v.spec}" for v in graph.inputs)
        lines = []
        for state in graph.state:
            label = names[state.input]
            quoted = "" if self.bare or label == f"%{state.name}" else f" {json.dumps(state.name)}"
            lines.append(f"state {label}{quoted}: {state.input.spec}")
        for node in graph.nodes:
            lines += self.node(node, names)
        for state in graph.state:
            if state.written:
                lines.append(f"next {names[state.input]} = {_name(names, state.output)}")
        lines.append(f"return {', '.join(_name(names, v) for v in graph.outputs)}".rstrip())
        return [f"{head}({inputs}) {{", *_indented(lines), "}"]

    def names(self, graph: Graph) -> dict[Value, str]:
        """A distinct label for every value: its own name where it has a printable one, else a number."""
        out: dict[Value, str] = {}
        taken: set[str] = set()

        def give(value: Value, wanted: str) -> None:
            label, count = wanted, 1
            while label in taken:
                label, count = f"{wanted}_{count}", count + 1
            taken.add(label)
            out[value] = f"%{label}"

        for i, value in enumerate(graph.inputs):
            give(value, self.own_name(value.name) or f"arg{i}")
        for i, state in enumerate(graph.state):
            give(state.input, self.own_name(state.input.name or state.name) or f"state{i}")
        number = 0
        for node in graph.nodes:
            for value in node.outputs:
                name = None if value in out else self.own_name(value.name)
                give(value, name or str(number))
                number += name is None
        return out

    def own_name(self, name: str | None) -> str | None:
        if self.bare or not name:
            return None
        name = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        return name if _PLAIN_NAME.match(name) else f"_{name}"

    def node(self, node: Node, names: dict[Value, str]) -> list[str]:
        left = ", ".join(names[v] for v in node.outputs)
        lines = [f"{left} = {node.op.name}({', '.join(_name(names, v) for v in node.inputs)})"]
        lines = self.attributes(lines, node.attrs)
        scope = "" if self.bare or not node.scope else f"  # {' '.join(node.scope.split())}"
        lines[-1] += f" : {', '.join(str(v.spec) for v in node.outputs)}{scope}"
        return lines

    def attributes(self, lines: list[str], attrs: dict[str, Any]) -> list[str]:
        if not attrs:
            return lines
        printed = [(name, self.item(item)) for name, item in attrs.items()]
        if all(len(item) == 1 for _, item in printed):
            lines[-1] += f" {{{', '.join(f'{name}={item[0]}' for name, item in printed)}}}"
            return lines
        lines[-1] += " {"
        for i, (name, item) in enumerate(printed):
            block = [f"{name} = {item[0]}", *item[1:]]
            block[-1] += "," if i < len(printed) - 1 else ""
            lines += _indented(block)
        return [*lines, "}"]

    def item(self, item: Any) -> list[str]:
        """One attribute as lines (more than one for a graph)."""
        if isinstance(item, Graph):
            return self.graph(item, "graph")
        if isinstance(item, np.ndarray):
            return [self.array(item)]
        return [_plain(item)]

    def array(self, array: np.ndarray) -> str:
        kind = str(Spec(array.shape, as_dtype(array.dtype)))
        if array.size <= INLINE_ELEMENTS:
            return f"{kind}{{{', '.join(map(_number, array.reshape(-1)))}}}"
        if self.full:
            return f"{kind} base64:{base64.b64encode(_bytes(array)).decode()}"
        return f"{kind} sha256:{digest(array)}"


def _plain(item: Any) -> str:
    if item is None or isinstance(item, (bool, np.bool_)):
        return str(item).lower() if item is not None else "none"
    if isinstance(item, (int, np.integer)):
        return str(int(item))
    if isinstance(item, (float, np.floating)):
        return repr(float(item))
    if isinstance(item, str):
        return json.dumps(item)
    if isinstance(item, DType):
        return item.short
    if isinstance(item, Sym):
        text = str(item)
        return text if text.isidentifier() and text not in RESERVED else f"<{text}>"
    if isinstance(item, (tuple, list)):
        return f"({', '.join(map(_plain, item))}{',' if len(item) == 1 else ''})"
    if callable(item):  # the rule of a custom gradient: only its name survives
        return json.dumps(getattr(item, "__name__", type(item).__name__))
    raise GraphError(
        f"attribute {item!r} of type {type(item).__name__} cannot be printed; attributes are numbers, strings, "
        "dtypes, dims, arrays, graphs and tuples of these"
    )


def _number(element: Any) -> str:
    """The shortest text that reads back as exactly this element."""
    if element.dtype.kind in "biu":
        return str(element.item()).lower()
    return str(element) if element.dtype == np.float32 else repr(float(element))


def _name(names: dict[Value, str], value: Value) -> str:
    """The label of an operand; a value from nowhere (a malformed graph) still prints."""
    return names.get(value, "%?")


def _indented(lines: Iterable[str]) -> list[str]:
    return ["  " + line for line in lines]
