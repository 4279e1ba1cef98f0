"""What a lowered graph is made of: places in memory, and steps that read and write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twofold.backends.cpu.blocks import Blocks
from twofold.backends.cpu.loops import Affine, Buffer, Expr, Nest, constant, load
from twofold.backends.cpu.program import Kernel
from twofold.ir import Node, Spec, Value

At = Callable[[Sequence[Affine]], Expr]


@dataclass(frozen=True)
class Placed:
    """An array in memory: element ``index`` lies at ``offset + sum(stride * index)`` of ``buffer`` (in elements)."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def address(self, index: Sequence[Affine]) -> Affine:
        total = constant(self.offset)
        for i, stride in zip(index, self.strides, strict=True):
            total = total + i * stride
        return total

    def at(self, index: Sequence[Affine]) -> Expr:
        """The element, as an expression."""
        return load(self.buffer, self.address(index))

    @property
    def order(self) -> tuple[int, ...]:
        """Dimensions from the outermost in memory to the innermost; one of extent 1 lies inside the one it ties with (the
        channel of channels-last images that have one)."""
        return tuple(sorted(range(len(self.shape)), key=lambda d: (-self.strides[d], self.shape[d] == 1, d)))

    @property
    def is_rows(self) -> bool:
        """The whole buffer, row-major."""
        return self.strides == row_strides(self.shape) and self.offset == 0


def row_strides(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Strides (in elements) of a dense array whose dimensions lie in ``order`` (default: as they are)."""
    strides, step = [0] * len(shape), 1
    for d in reversed(order if order is not None else range(len(shape))):
        strides[d] = step
        step *= shape[d]
    return tuple(strides)


def size_of(spec: Spec) -> int:
    """Elements of a concrete spec."""
    return int(np.prod(spec.shape, dtype=np.int64))  # type: ignore[arg-type]


def remembered(at: At) -> At:
    """The formula, computed once for each index asked for."""
    known: dict[tuple[Affine, ...], Expr] = {}

    def recall(index: Sequence[Affine]) -> Expr:
        key = tuple(index)
        if key not in known:
            known[key] = at(key)
        return known[key]

    return recall


class NestStep:
    """A loop nest to be emitted; ``nodes`` are the graph's nodes it computes. What it touches is worked out once."""

    def __init__(self, nest: Nest, nodes: Sequence[Node] = ()):
        self.nest, self.nodes = nest, list(nodes)
        self._reads: list[Buffer] | None = None
        self._writes: list[Buffer] | None = None

    def reads(self) -> list[Buffer]:
        if self._reads is None:
            self._reads = self.nest.reads()
        return self._reads

    def writes(self) -> list[Buffer]:
        if self._writes is None:
            self._writes = self.nest.writes()
        return self._writes

    def change(self, nest: Nest) -> None:
        """Compute something else."""
        self.nest, self._reads, self._writes = nest, None, None

    def replace(self, old: Buffer, new: Buffer) -> None:
        """Use another buffer in the place of one."""
        from twofold.backends.cpu.lowering.rewrite import replace_buffer

        if old in self.reads() or old in self.writes():
            self.change(replace_buffer(self.nest, old, new))


@dataclass
class KernelStep:
    """A generated kernel; ``places`` answer to its parameters, as (buffer, element offset): what it reads, its result (the one
    numbered ``result``), and what its epilogue touches. ``widths`` are the channels of those that are images.

    The epilogue reads ``besides``, as (buffer, address), and ``aligned`` buffers only at the element that it computes.
    """

    kernel: Kernel
    places: list[tuple[Buffer, int]]
    written: list[Buffer]
    result: int
    widths: dict[int, int]
    nodes: list[Node] = field(default_factory=list)
    besides: list[tuple[Buffer, Affine]] = field(default_factory=list)
    aligned: frozenset[Buffer] = frozenset()

    def reads(self) -> list[Buffer]:
        return list(dict.fromkeys(b for b, _ in self.places))

    def writes(self) -> list[Buffer]:
        return self.written

    def replace(self, old: Buffer, new: Buffer) -> None:
        swap = lambda b: new if b is old else b
        self.places = [(swap(b), at) for b, at in self.places]
        self.written = [swap(b) for b in self.written]
        self.besides = [(swap(b), address) for b, address in self.besides]
        self.aligned = frozenset(map(swap, self.aligned))


@dataclass
class HostStep:
    """Python code between native parts: ``run(*arrays)`` returns arrays for ``outputs``. Used for ops without a kernel
    (``lowering/rules`` has them) and for control flow."""

    name: str
    run: Callable[..., Sequence[np.ndarray]]
    inputs: list[Placed]
    outputs: list[Placed]
    nodes: list[Node] = field(default_factory=list)

    def reads(self) -> list[Buffer]:
        return [p.buffer for p in self.inputs]

    def writes(self) -> list[Buffer]:
        return [p.buffer for p in self.outputs]

    def replace(self, old: Buffer, new: Buffer) -> None:
        from dataclasses import replace

        self.inputs = [replace(p, buffer=new) if p.buffer is old else p for p in self.inputs]
        self.outputs = [replace(p, buffer=new) if p.buffer is old else p for p in self.outputs]


Step = Any  # NestStep | KernelStep | HostStep


@dataclass(frozen=True)
class Check:
    """What an error word means: the message (with ``{index}`` where the offending index goes), and the layer path."""

    message: str
    scope: str


@dataclass
class Plan:
    """A lowered graph. Buffers that are neither inputs, outputs, constants nor kept are temporary and live in the arena.

    ``prepare`` are steps done at the first call and again when the state they read has changed; ``kept`` are their results
    that ``steps`` read. ``layouts`` are the orders of the inputs that are state kept packed. ``replaced`` are the buffers of
    new state that are to lie where an input does, and that input's. ``pitches`` are the distances of pixels in buffers of which
    slices of channels are values of their own. ``checked`` are indices that a step has looked at.
    """

    steps: list[Step]
    inputs: list[Buffer]
    outputs: list[Placed]  # one for each of the graph's all_outputs
    specs: list[Spec]
    constants: dict[Buffer, np.ndarray]
    checks: list[Check] = field(default_factory=list)  # meanings of the error word: code k is checks[k - 1]
    notes: list[str] = field(default_factory=list)
    donated: list[int] = field(default_factory=list)
    values: dict[Value, Placed] = field(default_factory=dict)
    prepare: list[Step] = field(default_factory=list)
    kept: list[Buffer] = field(default_factory=list)
    layouts: dict[int, Blocks] = field(default_factory=dict)
    replaced: dict[Buffer, Buffer] = field(default_factory=dict)
    pitches: dict[Buffer, int] = field(default_factory=dict)
    checked: set[Buffer] = field(default_factory=set)

    def may_fail(self, step: Step) -> bool:
        """Whether a step may end in an error: what is done in Python may raise."""
        return isinstance(step, HostStep) or not self.checked.isdisjoint(step.writes())
