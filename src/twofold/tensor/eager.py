"""The eager interpreter: computes an op at once and, where gradients are wanted, keeps the node that produced it.

An ``Array`` is a value with a buffer. The record holds only the buffers that the op's ``vjp`` reads.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from twofold.backends import Device, Layout, default_device, device
from twofold.base import locks
from twofold.base.errors import DeviceError, TwofoldError
from twofold.ir import Node, Op, Spec, Value, context
from twofold.ir.builder import annotate, eager_bind


class Array(Value):
    """A concrete value: a buffer on a device."""

    __slots__ = ("buffer", "device")

    def __init__(self, spec: Spec, buffer: Any, where: Device, producer: Node | None = None, index: int = 0):
        super().__init__(spec, producer, index)
        self.buffer = buffer
        self.device = where

    def numpy(self) -> np.ndarray:
        """The content as a NumPy array (shares memory on a CPU)."""
        return np.asarray(self.device.backend.get(self.buffer))


class LaidOut(Array):
    """An array whose numbers lie in a program's own order (``Layout``). Whoever asks for its buffer gets an ordinary one, and
    the array is an ordinary one from then on, so that the numbers are never held twice."""

    __slots__ = ()

    def __init__(self, spec: Spec, buffer: Any, where: Device, layout: Layout):
        Value.__init__(self, spec)
        _SLOT.__set__(self, _Order(buffer, layout))
        self.device = where

    @property
    def buffer(self) -> Any:
        with _turning:  # two threads that ask at once get the same buffer
            held = _SLOT.__get__(self)
            if isinstance(held, _Order):
                held = held.layout.unpack(held.buffer)
                _SLOT.__set__(self, held)
                self.__class__ = Array  # type: ignore[assignment]
            return held


class _Order:
    """What a ``LaidOut`` array has in the place of its buffer."""

    __slots__ = ("buffer", "layout")

    def __init__(self, buffer: Any, layout: Layout):
        self.buffer, self.layout = buffer, layout


_SLOT: Any = vars(Array)["buffer"]  # where both kinds of array have what they hold
_turning = locks.renewed()


def lies(array: Array, layout: Layout) -> bool:
    """Whether the numbers of an array lie in the order of a layout."""
    held = _SLOT.__get__(array)
    return isinstance(held, _Order) and held.layout == layout


def laid_out(array: Array, layout: Layout) -> Any:
    """The numbers of an array in the order of a layout: what it holds, if they lie so, else a new buffer."""
    held = _SLOT.__get__(array)
    return held.buffer if isinstance(held, _Order) and held.layout == layout else layout.pack(array.buffer)


_SPECS: dict[Any, tuple[Spec, ...]] = {}


def _specs(op: Op, inputs: Sequence[Value], attrs: dict[str, Any]) -> tuple[Spec, ...]:
    """The type rule, remembered: the same op on the same shapes is looked up."""
    key: list[Any] = [op]
    for value in inputs:
        key += value.spec.shape, value.spec.dtype.name
    try:
        known = _SPECS.get(found := (*key, *attrs.items()))
    except TypeError:  # an attribute that does not hash: an array
        return op.specs(tuple(v.spec for v in inputs), attrs)
    if known is None:
        known = op.specs(tuple(v.spec for v in inputs), attrs)
        if op.pure:
            if len(_SPECS) > 20_000:
                _SPECS.clear()
            _SPECS[found] = known
    return known


def _common_device(op: Op, inputs: Sequence[Value]) -> Device:
    """The one device of all operands; a 0-d array follows the others."""
    where: Device | None = None
    for value in inputs:
        here = value.device  # type: ignore[attr-defined]
        if here is where:
            continue
        if where is None or (where != here and value.ndim == 0):
            where = where or here
        elif where != here:
            if inputs[0].ndim == 0:
                where = here
            else:
                raise DeviceError(f"{op.name}: operands live on {where} and {here}; move one with x.to({str(where)!r})")
    return where or default_device()


def eager(op: Op, inputs: Sequence[Value], attrs: dict[str, Any]) -> Any:
    """Compute one op now."""
    where = attrs.pop("device", None)
    try:
        where = _common_device(op, inputs) if where is None else device(where)
        specs = _specs(op, inputs, attrs)
        buffers = [_buffer_on(v, where) for v in inputs]
        results = where.backend.run(op, buffers, attrs, specs, where)
    except TwofoldError as error:
        annotate(error)
        raise
    return deliver(op, inputs, attrs, specs, results, where)


def deliver(
    op: Op, inputs: Sequence[Value], attrs: dict[str, Any], specs: Sequence[Spec], results: Sequence[Any], where: Device
) -> Any:
    """The values of an op's results; with the node that made them, where gradients are wanted."""
    tracked = context.grad_enabled and True in [v.requires_grad for v in inputs]
    if not tracked:
        outputs = [Array(spec, buffer, where) for spec, buffer in zip(specs, results)]
        return tuple(outputs) if op.multi else outputs[0]
    node = _record(op, inputs, attrs, specs, results, where)
    outputs = []
    for i, (spec, buffer) in enumerate(zip(specs, results)):
        floating = spec.dtype.is_floating
        outputs.append(Array(spec, buffer, where, node if floating else None, i))
        outputs[i].requires_grad = floating
    return tuple(outputs) if op.multi else outputs[0]


def _buffer_on(value: Value, where: Device) -> Any:
    here: Device = value.device  # type: ignore[attr-defined]
    buffer = value.buffer  # type: ignore[attr-defined]
    return buffer if here is where or here == where else where.backend.put(np.asarray(here.backend.get(buffer)), where)


def _record(
    op: Op, inputs: Sequence[Value], attrs: dict[str, Any], specs: Sequence[Spec], results: Sequence[Any], where: Device
) -> Node:
    """The node for backward. Outputs are kept as fresh twins whose producer is the node *by index*, not by reference,
    so that a record and its results do not keep each other alive."""
    outputs_read, inputs_read = op.saved(len(inputs))
    node = Node(
        op,
        tuple(v if keep else _without_buffer(v) for v, keep in zip(inputs, inputs_read)),
        attrs,
        ".".join(context.scope),
    )
    read = range(len(results)) if op.reads is None else op.reads
    kept = [r if outputs_read and i in read else None for i, r in enumerate(results)]
    node.outputs = Outputs(node, specs, kept, where)  # type: ignore[assignment]
    return node


def _without_buffer(value: Value) -> Value:
    if value.producer is None and value.requires_grad:
        return value  # a leaf: its identity matters, and its owner keeps it alive
    twin = Array(value.spec, None, value.device, value.producer, value.index)  # type: ignore[attr-defined]
    twin.requires_grad, twin.detached, twin._owner = value.requires_grad, value.detached, value._owner
    return twin


class Outputs:
    """A node's outputs, made anew when asked for: holding them would tie node and value into a cycle."""

    __slots__ = ("buffers", "node", "specs", "where")

    def __init__(self, node: Node, specs: Sequence[Spec], buffers: Sequence[Any], where: Device):
        self.node, self.specs, self.buffers, self.where = weakref.ref(node), specs, buffers, where

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, index: int) -> Array:
        spec = self.specs[index]
        out = Array(spec, self.buffers[index], self.where, self.node(), index)
        out.requires_grad = spec.dtype.is_floating
        return out

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))


eager_bind.append(eager)
