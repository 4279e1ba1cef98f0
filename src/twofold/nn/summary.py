"""``tw.summary``: what a network is made of, layer by layer, without running it: the network is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twofold.base.dtypes import as_dtype
from twofold.base.errors import ArgumentError
from twofold.base.shapes import product, show
from twofold.ir import Graph, Node, Spec, Value, grad_mode
from twofold.nn.module import Module, Parameter
from twofold.static.trace import trace
from twofold.tensor.tensor import Tensor

_IN_PLACE = frozenset({"reshape", "constant", "full", "identity", "detach"})


@dataclass(frozen=True)
class Row:
    """One layer: its path, class, the shape it gives, its own parameters, those in matrices and filters (``weights``: no
    biases, no vectors), multiply-adds (of convolutions and matrix products) and bytes of activations (0 if it can work
    in place)."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    weights: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The rows in the order of the calls, and totals. ``str`` gives a table, ``as_dict`` what JSON can hold.

    ``activation_bytes`` is the input and every layer's output, counted once; layers that can work in place (activation
    functions, batch normalisation, dropout in inference) add nothing.
    """

    model: str
    input: tuple[int, ...]
    rows: list[Row]
    parameters: int
    weights: int
    trainable: int
    multiply_adds: int
    activation_bytes: int
    shapes: dict[str, tuple[int, ...]]  # what every module gives, containers included, by path

    def output_shape(self, path: str) -> tuple[int, ...]:
        """The shape that the layer, or the stage, at a path gives. ArgumentError names the paths there are."""
        if path not in self.shapes:
            known = ", ".join(map(repr, list(self.shapes)[:20]))
            raise ArgumentError(f"summary: no layer {path!r} was called; there are {known}, ...")
        return self.shapes[path]

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        head = ("layer", "", "output", "parameters", "weights", "multiply-adds", "activations")
        lines = [head, *((r.name, r.kind, show(r.output), *_numbers(r)) for r in self.rows)]
        lines.append(("total", self.model, "", *_numbers(self)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        text = [_row(line, widths) for line in lines]
        note = f"input {show(self.input)}; {self.trainable:,} of the parameters are trainable"
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1], note])


def summary(model: Module, input_shape: Sequence[int], dtype: Any = "float32") -> Summary:
    """Layers of ``model`` for an input of ``input_shape``: of one item, such as ``(3, 224, 224)`` or ``(784,)``, or
    with the batch in front, ``(1, 3, 224, 224)``. The model is looked at as in inference.

    >>> import twofold as tw
    >>> print(tw.summary(tw.nn.Sequential(tw.nn.Linear(4, 3), tw.nn.ReLU()), (4,)))
    layer              output  parameters  weights  multiply-adds  activations
    --------------------------------------------------------------------------
    0      Linear      (1, 3)          15       12             12         12 B
    1      ReLU        (1, 3)           0        0              0          0 B
    --------------------------------------------------------------------------
    total  Sequential                  15       12             12         28 B
    input (1, 4); 15 of the parameters are trainable
    """
    given = tuple(int(d) for d in input_shape)
    shape = given if len(given) > 3 else (1, *given)
    calls: list[tuple[str, Module, tuple[int, ...]]] = []
    spec = Spec(shape, as_dtype(dtype))
    with _watched(model, calls), grad_mode(False):
        graph = trace(model, (Value(spec),), specs=[spec], keep_gradients=False).graph
    rows = list(_rows(model, graph, calls))
    return Summary(
        type(model).__name__, shape, rows, model.num_parameters(), sum(r.weights for r in rows),
        model.num_parameters(trainable=True), sum(r.multiply_adds for r in rows),
        int(spec.nbytes) + sum(r.activation_bytes for r in rows), {name: output for name, _, output in calls},
    )  # fmt: skip


@contextlib.contextmanager
def _watched(model: Module, calls: list[tuple[str, Module, tuple[int, ...]]]) -> Iterator[None]:
    """In the block, modules are in inference mode and their calls are noted."""

    def note(name: str) -> Any:
        return lambda module, _, output: calls.append((name, module, _shape(output)))

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules()]
    try:
        with model.evaluating():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _shape(output: Any) -> tuple[int, ...]:
    """The shape of an output, or of the first tensor of several."""
    while isinstance(output, (tuple, list, dict)) and output:
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return tuple(map(int, output.shape)) if isinstance(output, Tensor) else ()


def _rows(model: Module, graph: Graph, calls: list[tuple[str, Module, tuple[int, ...]]]) -> Iterator[Row]:
    """Leaf modules, and others with parameters or products of their own."""
    nodes: dict[str, list[Node]] = {}
    for node in graph.nodes:
        nodes.setdefault(node.scope, []).append(node)
    counted: set[int] = set()
    for name, module, output in calls:
        mine = nodes.pop(name, [])
        own = {id(p): p for _, p in module._attributes(Parameter) if id(p) not in counted}
        parameters = sum(int(product(p.shape)) for p in own.values())
        weights = sum(int(product(p.shape)) for p in own.values() if len(p.shape) > 1)
        counted |= set(own)
        products = sum(map(_multiply_adds, mine))
        leaf = next(module.children(), None) is None
        if leaf or parameters or products:
            writes = any(n.op.kind != "elementwise" and n.op.name not in _IN_PLACE for n in mine)
            size = max((int(n.outputs[0].spec.dtype.itemsize) for n in mine), default=4) * int(product(output))
            yield Row(name, type(module).__name__, output, parameters, weights, products, size if writes else 0)


def _multiply_adds(node: Node) -> int:
    out = int(product(node.outputs[0].shape))
    if node.op.name == "conv":
        return out * int(product(node.inputs[1].shape[1:]))
    if node.op.name == "conv_input_grad":
        return int(product(node.inputs[0].shape)) * int(product(node.inputs[1].shape[1:]))
    return out * int(node.inputs[0].shape[-1]) if node.op.name == "matmul" else 0


def _numbers(of: Row | Summary) -> tuple[str, str, str, str]:
    return f"{of.parameters:,}", f"{of.weights:,}", f"{of.multiply_adds:,}", _bytes(of.activation_bytes)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths)))
    return "  ".join(padded).rstrip()


def _bytes(n: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
