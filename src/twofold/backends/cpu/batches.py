"""Inference of a batch, a few images at a time where maps are large.

A layer leaves its map to the next one. Of eight images of 224x224 the first maps take 25 MB each: they are written to memory
and read from there. Of one image they are found in the cache, but then the last layers, whose weights are larger than their
maps, would read all weights again for each image. So a graph that treats its images one by one is cut into stages: in each,
as many images go through together as lets the fewest bytes come from memory.

Between stages images lie channels-last, as kernels read and write them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from twofold.backends.cpu.layout import CHANNELS_LAST, CHANNELS_SECOND
from twofold.ir import Graph, Node, Spec, Value
from twofold.ir.rewrite import Rebuilt
from twofold.ir.values import State

HEAVY = frozenset(("conv", "matmul", "pool"))  # kinds of ops with kernels of their own: the others are fused, mostly
LAST = 0.3  # what a byte from the last cache costs, by one from memory
COPY = 2  # bytes moved for each byte that is copied
Attrs = dict[str, Any]


@dataclass
class Stage:
    """A part of a graph, and ``graph``: the same for ``images`` at a time.

    It takes rows of ``inputs`` and gives rows of ``outputs``, which are values of the whole graph; ``state`` are the numbers
    of the variables that it reads. Images on their way from stage to stage are channels-last.
    """

    images: int
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    state: list[int] = field(default_factory=list)
    graph: Graph = field(default_factory=Graph)


def stages(graph: Graph, near: int, last: int) -> list[Stage]:
    """The stages of a graph whose sizes are known; none where it mixes its images early, or all go through together. Caches
    have room for maps of ``near`` bytes close to the threads, and for maps of ``last`` bytes farther away."""
    batch = _batch(graph)
    if batch < 2 or any(s.written for s in graph.state) or not all(node.op.pure for node in graph.nodes):
        return []
    kinds = _kinds(graph, batch)
    heavy = [n for n in graph.nodes if n.op.kind in HEAVY and n.outputs[0] in kinds.rows]
    if not heavy or not all(v.producer is not None and v in kinds.made for v in graph.outputs):
        return []
    if _bytes(graph.outputs) > max(map(_maps, heavy)):  # they would be copied
        return []
    together = _together(heavy, _crossing(graph, kinds.rows, heavy), batch, near, last)
    if together[heavy[0]] == batch:
        return []
    found = _grouped(graph, kinds, together, Stage(together[heavy[0]]), batch)
    for stage in found:
        _connect(stage, graph, kinds, found)
        stage.graph = _graph(stage, graph, kinds, batch)
    return found


# ---- which values have a row for each image ---------------------------------------------------------------------------
def _batch(graph: Graph) -> int:
    """The first size that all inputs share; 0 if they do not."""
    sizes = {v.shape[0] if v.ndim else 0 for v in graph.inputs}
    size = sizes.pop() if len(sizes) == 1 else 0
    return size if isinstance(size, int) else 0


@dataclass
class _Kinds:
    """What the values of a graph are made of: ``rows`` have a row for each image that depends on nothing of the others;
    ``mixed`` are made of rows in some other way. The rest is the same for every batch."""

    rows: set[Value] = field(default_factory=set)
    mixed: set[Value] = field(default_factory=set)

    @property
    def made(self) -> set[Value]:
        return self.rows | self.mixed


def _kinds(graph: Graph, batch: int) -> _Kinds:
    kinds = _Kinds(set(graph.inputs))
    for node in graph.nodes:
        if any(v in kinds.rows or v in kinds.mixed for v in node.inputs):
            alone = kinds.mixed.isdisjoint(node.inputs) and _alone(node, kinds.rows, batch, batch) is not None
            (kinds.rows if alone else kinds.mixed).update(node.outputs)
    return kinds


def _alone(node: Node, rows: Collection[Value], batch: int, images: int) -> Attrs | None:
    """The attributes of a node for so many images of the batch; None where it does not treat them one by one."""
    if node.op.kind == "elementwise":
        return node.attrs if all(map(_fits(node, rows), node.inputs)) else None
    rule = RULES.get(node.op.name)
    first, *others = node.inputs
    if rule is None or first not in rows or any((v in rows) != (node.op.name == "concat") for v in others):
        return None
    return rule(node, batch, images)


def _fits(node: Node, rows: Collection[Value]) -> Callable[[Value], bool]:
    """Whether an operand of an elementwise node meets each image by itself."""
    ndim = node.outputs[0].ndim
    return lambda v: v.ndim == ndim if v in rows else v.ndim < ndim or v.shape[0] == 1


def _if(test: Callable[[Node], bool]) -> Callable[[Node, int, int], Attrs | None]:
    return lambda node, batch, images: node.attrs if test(node) else None


def _first(name: str, test: Callable[[Node], bool]) -> Callable[[Node, int, int], Attrs | None]:
    """The entry ``name`` of the attributes begins with the size of the batch."""

    def rule(node: Node, batch: int, images: int) -> Attrs | None:
        start, *rest = node.attrs[name] or (0,)
        return {**node.attrs, name: (images, *rest)} if start == batch and test(node) else None

    return rule


_always = _if(lambda node: True)
_other_axes = _if(lambda node: 0 not in node.attrs["axes"])
RULES: dict[str, Callable[[Node, int, int], Attrs | None]] = {
    **dict.fromkeys(("conv", "max_pool", "avg_pool", "detach", "identity"), _always),
    **dict.fromkeys(("sum", "prod", "max", "min", "any", "all", "flip"), _other_axes),
    "matmul": _if(lambda node: node.inputs[0].ndim == 2 == node.inputs[1].ndim),
    "reshape": _first("shape", lambda node: True),
    "broadcast_to": _first("shape", lambda node: node.inputs[0].ndim == node.outputs[0].ndim),
    "permute_dims": _if(lambda node: node.attrs["axes"][0] == 0),
    "concat": _if(lambda node: node.attrs["axis"] != 0),
    "slice": _first("stops", lambda node: node.attrs["starts"][0] == 0 and node.attrs["steps"][0] == 1),
    "pad": _if(lambda node: (*node.attrs["widths"][0], node.attrs["interior"][0]) == (0, 0, 0)),
}


# ---- how many images go together, and what is done with them ----------------------------------------------------------
def _bytes(values: Sequence[Value]) -> int:
    return sum(v.spec.nbytes for v in values)  # type: ignore[misc]


def _maps(node: Node) -> int:
    """Bytes of what a node reads and writes for the whole batch."""
    return _bytes([node.inputs[0], node.outputs[0]])


def _crossing(graph: Graph, rows: Collection[Value], heavy: Sequence[Node]) -> list[int]:
    """For each heavy node the bytes of rows that are made before it and read then or later, for the whole batch."""
    at = {node: i for i, node in enumerate(graph.nodes)}
    last = {v: at[node] for node in graph.nodes for v in node.inputs}
    lives = [(at[v.producer], last.get(v, 0), v) for v in rows if v.producer is not None]
    return [_bytes([v for made, read, v in lives if made < at[node] <= read]) for node in heavy]


def _together(heavy: Sequence[Node], crossing: Sequence[int], batch: int, near: int, last: int) -> dict[Node, int]:
    """How many images go through each node together, never fewer later on: where the fewest bytes come from memory. Weights
    come again for each turn, maps where they have no room, and what crosses to another stage is copied."""

    def price(size: int) -> float:
        return 0.0 if size <= near else LAST if size <= last else 1.0

    sizes = [d for d in range(1, batch + 1) if batch % d == 0]
    moved, ways = [0.0] * len(sizes), []
    for node, crosses in zip(heavy, crossing):
        maps, weights = _maps(node), _bytes(node.inputs[1:2])
        change = [[moved[b] + (COPY * crosses if b < k else 0) for b in range(k + 1)] for k in range(len(sizes))]
        before = [_least(c) for c in change]
        cost = [weights * batch / d + maps * price(maps * d // batch) for d in sizes]
        moved = [c[b] + more for c, b, more in zip(change, before, cost)]
        ways.append(before)
    at, found = _least(moved), {}
    for node, before in zip(reversed(heavy), reversed(ways)):
        found[node] = sizes[at]
        at = before[at]
    return found


def _least(costs: Sequence[float]) -> int:
    """Where the least is, the last of equal ones."""
    return min(reversed(range(len(costs))), key=costs.__getitem__)


def _grouped(graph: Graph, kinds: _Kinds, together: dict[Node, int], first: Stage, batch: int) -> list[Stage]:
    """The nodes that depend on the inputs, by stages; those that mix images come last."""
    found, late = [first], []
    for node in graph.nodes:
        if node.outputs[0] in kinds.mixed:
            late.append(node)
        elif node.outputs[0] in kinds.rows:
            images = together.get(node, found[-1].images)
            if images != found[-1].images:
                found.append(Stage(images))
            found[-1].nodes.append(node)
    if late and found[-1].images != batch:
        found.append(Stage(batch))
    found[-1].nodes += late
    return found


def _connect(stage: Stage, graph: Graph, kinds: _Kinds, others: Sequence[Stage]) -> None:
    """Fill in what a stage takes and gives, and add the nodes that are the same for every batch and that it needs."""
    made = {v for node in stage.nodes for v in node.outputs}
    read = {v for node in stage.nodes for v in node.inputs}
    elsewhere = {v for other in others if other is not stage for node in other.nodes for v in node.inputs}
    stage.outputs = [v for n in stage.nodes for v in n.outputs if v in elsewhere or v in graph.outputs]
    wanted = set(stage.nodes)
    for node in reversed(graph.nodes):
        if not read.isdisjoint(node.outputs) and kinds.made.isdisjoint(node.outputs):
            wanted.add(node)
            read.update(node.inputs)
    stage.inputs = [v for v in [*graph.inputs, *_made(graph)] if v in read and v in kinds.made and v not in made]
    stage.state = [i for i, s in enumerate(graph.state) if s.input in read]
    stage.nodes = [node for node in graph.nodes if node in wanted]


def _made(graph: Graph) -> list[Value]:
    return [v for node in graph.nodes for v in node.outputs]


def _turned(value: Value, graph: Graph) -> bool:
    """Whether a value lies channels-last between stages: images that are neither what came in nor what goes out."""
    return value.ndim == 4 and value not in graph.inputs and value not in graph.outputs


def _graph(stage: Stage, graph: Graph, kinds: _Kinds, batch: int) -> Graph:
    """The nodes of a stage as a graph for its number of images."""
    new = Rebuilt(graph.name)
    for value in stage.inputs:
        turned = _turned(value, graph)
        shape = (stage.images, *value.shape[1:])
        leaf = new.leaf(value, Spec(tuple(shape[d] for d in CHANNELS_LAST) if turned else shape, value.dtype))
        new.graph.inputs.append(leaf)
        if turned:
            new.values[value] = new.emit("permute_dims", (leaf,), {"axes": CHANNELS_SECOND})[0]
    for i in stage.state:
        state = graph.state[i]
        leaf = new.leaf(state.input, state.input.spec)
        new.graph.state.append(State(state.name, leaf, leaf, state.variable))
    for node in stage.nodes:
        attrs = _alone(node, kinds.rows, batch, stage.images) if node.outputs[0] in kinds.rows else node.attrs
        for old, value in zip(node.outputs, new.emit(node.op, [new.values[v] for v in node.inputs], attrs, node.scope)):  # type: ignore[arg-type]
            new.stand_for(old, value)
    for value in stage.outputs:
        out = new.values[value]
        new.graph.outputs += new.emit("permute_dims", (out,), {"axes": CHANNELS_LAST}) if _turned(value, graph) else (out,)
    return new.graph
