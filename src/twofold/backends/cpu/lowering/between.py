"""State that stays in packed order between the calls of a program: convolution weights, and what is updated with them.

    state %w: f32[64,32,3,3]                        state %w: f32[18432]
    %1 = conv(%x, %w)                               %0 = unpack_weights(%w);  %1 = conv(%x, %0)
    %2 = conv_weight_grad(%x, %g)         ->        %2 = pack_weights(conv_weight_grad(%x, %g))
    %3 = multiply(%2, %lr)                          %3 = multiply(%2, %lr)      : f32[18432]
    %4 = subtract(%w, %3)                           %4 = subtract(%w, %3)       : f32[18432]
    next %w = %4                                    next %w = %4

The kernels of the forward pass read that order and those of weight gradients write it, so nothing is unpacked, and what is
packed is the data gradient's weights alone, from it. The update must be elementwise, of numbers and of arrays that come
along: whatever looks at one of them in another way (a norm of gradients, say) keeps the plain order for all, unless any order
does (whether all gradients are finite). A caller who wants the gradient gets it unpacked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from twofold.backends.cpu import jit
from twofold.backends.cpu.blocks import Blocks
from twofold.backends.cpu.kernels import repack
from twofold.backends.cpu.kernels.weights import Packed
from twofold.backends.cpu.lowering.rules import native
from twofold.backends.cpu.machine import Machine
from twofold.base.dtypes import float32
from twofold.ir import Graph, Node, Op, Spec, Value
from twofold.ir.rewrite import Rebuilt, rebuild
from twofold.ops import ELEMENTWISE

READERS = ("conv", "conv_input_grad")  # of weights, their second input
ORDERLESS = ("all", "any", "max", "min")  # reductions of all elements that give the same bits in every order


def blocks_of(packed: Packed) -> Blocks:
    """A packed order without padding, as those who run programs know it."""
    return Blocks(packed.groups, packed.outs, packed.ins, packed.kh, packed.kw, packed.block)


# two ops of this backend alone
PACK = Op(
    "pack_weights",
    lambda w, *, packed: Spec((packed.size,), w.dtype),
    lambda w, *, packed: blocks_of(packed).pack(w),
    kind="other",
)
UNPACK = Op(
    "unpack_weights",
    lambda q, *, packed: Spec((packed.groups * packed.outs, packed.ins, packed.kh, packed.kw), q.dtype),
    lambda q, *, packed: blocks_of(packed).unpack(q),
    kind="other",
)


def with_kernels(orders: Mapping[int, Packed], machine: Machine) -> dict[int, Blocks]:
    """The orders with kernels to get there and back."""
    kinds = dict.fromkeys(orders.values())
    kernels = [make(machine, packed) for packed in kinds for make in (repack.pack, repack.unpack)]
    objects = jit.compile_all([(kernel.ir, kernel.level) for kernel in kernels], machine)
    ways = [(name, kernel.symbol) for name, kernel in zip(objects, kernels)]
    known = {
        packed: replace(blocks_of(packed), packs=there, unpacks=back)
        for packed, there, back in zip(kinds, ways[::2], ways[1::2])
    }
    return {i: known[packed] for i, packed in orders.items()}


def kept_packed(graph: Graph, machine: Machine) -> tuple[Graph, dict[int, Packed]]:
    """The graph with such state in packed order, and the order of each, by its position among all inputs."""
    orders = _orders(graph, machine)
    if not orders:
        return graph, {}

    unpacked: dict[Value, Value] = {}
    gradients: dict[Value, Value] = {}  # in the plain order

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.outputs[0] in orders:
            if node.op.name in ELEMENTWISE:
                return None
            plain = gradients[node.outputs[0]] = new.copy(node, inputs)[0]
            return new.emit(PACK, [plain], {"packed": orders[node.outputs[0]]}, node.scope)
        if node.op.name in READERS and node.inputs[1] in orders:
            if inputs[1] not in unpacked:
                (unpacked[inputs[1]],) = new.emit(UNPACK, [inputs[1]], {"packed": orders[node.inputs[1]]}, node.scope)
            return new.copy(node, [inputs[0], unpacked[inputs[1]]])
        if node.inputs and node.inputs[0] in orders and _is_orderless(node):
            return new.emit(node.op, inputs, {**node.attrs, "axes": (0,)}, node.scope)
        return None

    changed = rebuild(graph, rule, lambda v: Spec((orders[v].size,), v.dtype) if v in orders else v.spec)
    changed.outputs = [gradients.get(v, output) for v, output in zip(graph.outputs, changed.outputs)]
    first = len(graph.inputs)
    return changed, {first + i: orders[s.input] for i, s in enumerate(graph.state) if s.input in orders}


def _orders(graph: Graph, machine: Machine) -> dict[Value, Packed]:
    """The values that lie packed, and how."""
    users, state = graph.users(), dict.fromkeys(s.input for s in graph.state if s.written)
    orders: dict[Value, Packed] = {}
    for weights in state:
        if weights not in orders and weights.ndim == 4:
            together = _together(weights, users, state)
            packed = _packed(together, users, machine)
            if packed is not None and _is_closed(graph, together):
                orders |= dict.fromkeys(together, packed)
    return orders


def _together(weights: Value, users: Mapping[Value, Sequence[Node]], state: Collection[Value]) -> set[Value]:
    """What must lie like ``weights``: all that elementwise ops tie to it. Empty if something else reads or makes any of it."""
    found, todo = {weights}, [weights]
    while todo:
        value = todo.pop()
        node = value.producer
        made = value in state if node is None else _is_gradient(value) or node.op.name in ELEMENTWISE
        uses = [u for u in users.get(value, ()) if not (_is_reader(u, value, state) or _is_orderless(u))]
        if not made or any(user.op.name not in ELEMENTWISE for user in uses):
            return set()
        tied = uses if node is None or _is_gradient(value) else [*uses, node]
        arrays = {v for n in tied for v in (*n.inputs, *n.outputs) if v.ndim}
        if any(v.shape != weights.shape for v in arrays):
            return set()
        todo += arrays - found
        found |= arrays
    return found


def _is_gradient(value: Value) -> bool:
    return value.producer is not None and value.producer.op.name == "conv_weight_grad"


def _is_reader(node: Node, value: Value, state: Collection[Value]) -> bool:
    """Whether a convolution reads a state as its weights."""
    return node.op.name in READERS and value is node.inputs[1] and value is not node.inputs[0] and value in state


def _is_orderless(node: Node) -> bool:
    """Whether a node reduces all elements of what it reads, in whatever order."""
    whole = node.op.name in ORDERLESS and len(node.attrs["axes"]) == node.inputs[0].ndim
    return whole and not node.attrs["keepdims"]


def _is_closed(graph: Graph, together: Collection[Value]) -> bool:
    """Whether the values are nothing but float32 state, old and new, to those outside, or gradients as kernels give them."""
    ends = [v for s in graph.state if (s.input in together) or (s.output in together) for v in (s.input, s.output)]
    wanted = [v for v in graph.outputs if v in together]
    return all(v in together and v.dtype is float32 for v in ends) and all(map(_is_gradient, wanted))


def _packed(together: Collection[Value], users: Mapping[Value, Sequence[Node]], machine: Machine) -> Packed | None:
    """The one order that all kernels want which read or make any of these values; None if there is none."""
    readers = [n for v in together for n in users.get(v, ()) if n.op.name in READERS]
    makers = [v.producer for v in together if v.producer is not None and _is_gradient(v)]
    if not makers or not any(n.op.name == "conv" for n in readers):
        return None
    wanted = {native.kept_weights(machine, n) for n in [*readers, *makers]}
    return wanted.pop() if len(wanted) == 1 else None


__all__ = ["PACK", "UNPACK", "kept_packed"]
