"""Reading the text of a graph. The grammar stands in ``twofold.ir.text``.

A text is hostile until proven sound: nesting and numbers are bounded, sizes are checked against the elements really
there, every type is inferred again and compared, and whatever is wrong is a GraphError that names the line.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from twofold.base.dims import parse_dim, symbol
from twofold.base.dtypes import BY_SHORT
from twofold.base.errors import GraphError, ShapeError, TwofoldError
from twofold.base.shapes import Shape, is_static, product
from twofold.ir.op import OPS
from twofold.ir.values import Graph, Node, Spec, State, Value

MAX_DEPTH = 32  # of graphs in graphs and tuples in tuples
MAX_DIM_TEXT = 256
MAX_DIGITS = 40

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<comment>\#[^\n]*) | (?P<value>%[A-Za-z0-9_.?]+) | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<type>[A-Za-z_][A-Za-z0-9_]*\[[^\]\n]*\]) | (?P<data>(?:sha256|base64):[A-Za-z0-9+/=]*)
      | (?P<number>[-+]?(?:inf\b|nan\b|[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?)) | (?P<dim><[^>\n]*>)
      | (?P<word>[A-Za-z_][A-Za-z0-9_.]*) | (?P<mark>[(){},:=])""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """One word of the text, and the comment that follows it on its line."""

    kind: str
    text: str
    line: int
    comment: str = ""


def parse_graph(text: str, constants: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph that ``print_graph`` wrote. Elided constants are looked up in ``constants`` (see ``constants_of``).

    Raises GraphError, naming the line, for anything that is not a well-formed graph.

    >>> from twofold.ir.text import parse_graph, print_graph
    >>> graph = parse_graph("graph twice(%x: f32[N]) { %0 = add(%x, %x) : f32[N]  return %0 }")
    >>> parse_graph(print_graph(graph)).outputs[0].spec
    Spec(shape=(N,), dtype=twofold.float32)
    """
    parser = _Parser(_tokens(text), constants or {})
    parser.expect("word", "graph")
    graph = parser.graph()
    parser.expect("end")
    return graph


def _tokens(text: str) -> list[Token]:
    out: list[Token] = []
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise GraphError(f"graph text, line {line}: cannot read {text[at : at + 20]!r}")
        kind = found.lastgroup or ""
        if kind == "comment":
            if out and out[-1].line == line:
                out[-1] = out[-1]._replace(comment=found.group()[1:].strip())
        elif kind != "space":
            out.append(Token(kind, found.group(), line))
        line += found.group().count("\n")
        at = found.end()
    return [*out, Token("end", "end of text", line)]


class _Parser:
    """Recursive descent over the tokens; ``scopes`` holds the values of the graphs being read, innermost last."""

    def __init__(self, tokens: list[Token], constants: Mapping[str, np.ndarray]):
        self.tokens, self.constants = tokens, constants
        self.position, self.depth = 0, 0
        self.values: dict[str, Value] = {}

    # -- tokens --------------------------------------------------------------------------------------------------------
    def peek(self) -> Token:
        return self.tokens[self.position]

    def take(self) -> Token:
        token = self.peek()
        if token.kind != "end":
            self.position += 1
        return token

    def accept(self, text: str) -> bool:
        token = self.peek()
        if token.kind in ("mark", "word") and token.text == text:
            self.position += 1
            return True
        return False

    def expect(self, kind: str, text: str = "") -> Token:
        token = self.take()
        if token.kind != kind or (text and token.text != text):
            raise self.error(f"got {token.text[:40]!r}, expected {text or 'a ' + kind}", token)
        return token

    def error(self, message: str, token: Token | None = None) -> GraphError:
        line = (token or self.peek()).line
        return GraphError(f"graph text, line {line}: {message}")

    def separated(self, read: Callable[[], Any], end: str) -> list[Any]:
        """Items up to the closing mark, commas between them (one may follow the last)."""
        out: list[Any] = []
        while not self.accept(end):
            out.append(read())
            if not self.accept(","):
                self.expect("mark", end)
                break
        return out

    def deeper(self, step: int) -> None:
        self.depth += step
        if self.depth > MAX_DEPTH:
            raise self.error(f"nested more than {MAX_DEPTH} deep")

    # -- graphs --------------------------------------------------------------------------------------------------------
    def graph(self) -> Graph:
        """What follows the word ``graph``."""
        self.deeper(+1)
        outer, self.values = self.values, {}
        graph = Graph(self.graph_name())
        self.expect("mark", "(")
        graph.inputs = self.separated(self.input, ")")
        self.expect("mark", "{")
        while not self.accept("return"):
            self.statement(graph)
        while self.peek().kind == "value":
            graph.outputs.append(self.operand())
            if not self.accept(","):
                break
        self.expect("mark", "}")
        self.values = outer
        self.deeper(-1)
        return graph

    def graph_name(self) -> str:
        token = self.peek()
        if token.kind == "mark":
            return "graph"
        self.position += 1
        return self.string(token) if token.kind == "string" else token.text

    def statement(self, graph: Graph) -> None:
        if self.accept("state"):
            value = self.define(self.expect("value"))
            name = self.string(self.take()) if self.peek().kind == "string" else value.name or ""
            self.expect("mark", ":")
            value.spec = self.type()
            graph.state.append(State(name, value, value))
        elif self.accept("next"):
            self.next(graph)
        else:
            graph.nodes.append(self.node())

    def next(self, graph: Graph) -> None:
        token = self.peek()
        target = self.operand()
        self.expect("mark", "=")
        source = self.operand()
        for state in graph.state:
            if state.input is target:
                if state.input.spec != source.spec:
                    raise self.error(f"state {state.name!r} is {target.spec}; its next value is {source.spec}", token)
                state.output = source
                return
        raise self.error(f"{token.text} is not a state of this graph", token)

    def input(self) -> Value:
        value = self.define(self.expect("value"))
        self.expect("mark", ":")
        value.spec = self.type()
        return value

    def define(self, token: Token) -> Value:
        """A new value; its spec is filled in by the caller."""
        label = token.text[1:]
        if token.text in self.values or "?" in label:
            raise self.error(f"{token.text} is defined twice" if "?" not in label else "%? is no name", token)
        value = Value(_UNKNOWN, None, 0, None if label.isdigit() else label)
        self.values[token.text] = value
        return value

    def operand(self) -> Value:
        token = self.expect("value")
        if token.text not in self.values:
            raise self.error(f"{token.text} is used before it is defined", token)
        return self.values[token.text]

    # -- nodes ---------------------------------------------------------------------------------------------------------
    def node(self) -> Node:
        targets = [self.expect("value")]
        while self.accept(","):
            targets.append(self.expect("value"))
        self.expect("mark", "=")
        name = self.expect("word")
        op = OPS.get(name.text)
        if op is None:
            raise self.error(f"op {name.text[:40]!r} is unknown", name)
        self.expect("mark", "(")
        inputs = tuple(self.separated(self.operand, ")"))
        attrs = dict(self.separated(self.attribute, "}")) if self.accept("{") else {}
        self.expect("mark", ":")
        declared = [self.type()]
        while self.accept(","):
            declared.append(self.type())
        node = Node(op, inputs, attrs, self.tokens[self.position - 1].comment)
        inferred = self.inferred(node, name)
        if list(inferred) != declared or len(declared) != len(targets):
            given, right = (", ".join(map(str, s)) for s in (declared, inferred))
            raise self.error(f"{op.name}: {len(targets)} values of types {given}; the op gives {right}", name)
        node.outputs = tuple(self.define(t) for t in targets)
        for i, (value, spec) in enumerate(zip(node.outputs, declared)):
            value.spec, value.producer, value.index = spec, node, i
        return node

    def inferred(self, node: Node, token: Token) -> tuple[Spec, ...]:
        try:
            return node.op.specs(tuple(v.spec for v in node.inputs), node.attrs)
        except TwofoldError as error:
            raise self.error(str(error), token) from error
        except Exception as error:  # a type rule trusts its attributes: whatever a hostile one provokes is a bad text
            raise self.error(
                f"{node.op.name}: bad operands or attributes ({type(error).__name__}: {error})", token
            ) from error

    # -- attributes ----------------------------------------------------------------------------------------------------
    def attribute(self) -> tuple[str, Any]:
        name = self.expect("word").text
        self.expect("mark", "=")
        return name, self.item()

    def item(self) -> Any:
        token = self.take()
        if token.kind == "number":
            return self.number(token)
        if token.kind == "string":
            return self.string(token)
        if token.kind == "dim":
            return self.dim(token.text[1:-1], token)
        if token.kind == "type":
            return self.array(token)
        if token.kind == "word":
            return self.graph() if token.text == "graph" else self.word(token)
        if token.text == "(":
            self.deeper(+1)
            items = tuple(self.separated(self.item, ")"))
            self.deeper(-1)
            return items
        raise self.error(f"got {token.text[:40]!r}, expected an attribute", token)

    def word(self, token: Token) -> Any:
        fixed = {"true": True, "false": False, "none": None, **BY_SHORT}
        if token.text in fixed:
            return fixed[token.text]
        try:
            return symbol(token.text)
        except ShapeError as error:
            raise self.error(str(error), token) from error

    def number(self, token: Token) -> int | float:
        if len(token.text) > MAX_DIGITS:
            raise self.error(f"number of {len(token.text)} characters; expected at most {MAX_DIGITS}", token)
        return float(token.text) if any(c in token.text for c in ".einfa") else int(token.text)

    def string(self, token: Token) -> str:
        try:
            return json.loads(token.text)
        except ValueError:
            raise self.error(f"string {token.text[:40]} cannot be read", token) from None

    def dim(self, text: str, token: Token) -> Any:
        if len(text) > MAX_DIM_TEXT:
            raise self.error(f"dimension of {len(text)} characters; expected at most {MAX_DIM_TEXT}", token)
        try:
            return parse_dim(text)
        except (ShapeError, ArithmeticError) as error:
            raise self.error(str(error), token) from error

    def type(self) -> Spec:
        token = self.expect("type")
        return self.spec(token)

    def spec(self, token: Token) -> Spec:
        dtype, _, dims = token.text[:-1].partition("[")
        if dtype not in BY_SHORT:
            raise self.error(f"dtype {dtype!r} is unknown", token)
        shape: Shape = tuple(self.dim(d, token) for d in dims.split(",")) if dims.strip() else ()
        if any(isinstance(d, int) and d < 0 for d in shape):
            raise self.error(f"type {token.text} has a negative size", token)
        return Spec(shape, BY_SHORT[dtype])

    def array(self, token: Token) -> np.ndarray:
        spec = self.spec(token)
        if not is_static(spec.shape):
            raise self.error(f"constant of type {spec}: expected sizes, not symbols", token)
        data = self.take()
        if data.text == "{":
            flat = self.elements(spec, self.separated(lambda: self.take().text, "}"), token)
        elif data.text.startswith("base64:"):
            flat = self.decoded(spec, data)
        elif data.text.startswith("sha256:"):
            return self.looked_up(spec, data)
        else:
            raise self.error(f"got {data.text[:40]!r}, expected the elements of a constant", data)
        array = flat.reshape(spec.shape)
        array.setflags(write=False)
        return array

    def elements(self, spec: Spec, texts: list[str], token: Token) -> np.ndarray:
        if len(texts) != product(spec.shape):
            raise self.error(
                f"constant of type {spec} has {len(texts)} elements; expected {product(spec.shape)}", token
            )
        read: Any = {"f": float, "b": {"true": True, "false": False}.__getitem__}.get(spec.dtype.kind, int)
        if spec.dtype.name == "float32":
            read = np.float32
        try:
            if any(len(t) > MAX_DIGITS for t in texts):
                raise ValueError
            return np.array([read(t) for t in texts], spec.dtype.numpy)
        except (ValueError, KeyError, OverflowError):
            raise self.error(f"constant of type {spec}: an element cannot be read or does not fit", token) from None

    def decoded(self, spec: Spec, token: Token) -> np.ndarray:
        try:
            content = base64.b64decode(token.text[7:], validate=True)
        except ValueError:
            raise self.error("constant: the base64 text is damaged", token) from None
        if len(content) != spec.nbytes:
            raise self.error(f"constant of type {spec} has {len(content)} bytes; expected {spec.nbytes}", token)
        if spec.dtype.kind == "b" and content.strip(b"\0\1"):
            raise self.error("constant of bools has bytes other than 0 and 1", token)
        return np.frombuffer(content, spec.dtype.numpy)

    def looked_up(self, spec: Spec, token: Token) -> np.ndarray:
        array = self.constants.get(token.text[7:])
        if array is None:
            raise self.error(
                f"the text leaves out a constant of type {spec} (digest {token.text[7:][:12]}...); "
                "pass constants=constants_of(graph), or print with full=True",
                token,
            )
        if tuple(array.shape) != spec.shape or array.dtype != spec.dtype.numpy:
            raise self.error(f"constant: {array.dtype.name}{list(array.shape)} was given for {spec}", token)
        return array


_UNKNOWN = Spec((), BY_SHORT["bool"])
