"""Convolutions, products and pools through the generated kernels: what they take, in which layout, and which algorithm.

Each function returns whether it took the node; if not, the plain loops do. A kernel's call waits (``Waiting.defer``) until
its result is read, so that elementwise work on the result can go into its epilogue.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from twofold.backends.cpu.kernels import (
    choose,
    gemm,
    interleave,
    outer,
    planes,
    pool,
    repack,
    weights,
)
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.layout import CHANNELS_LAST
from twofold.backends.cpu.loops import Buffer
from twofold.backends.cpu.lowering.packing import pack, place, unpack
from twofold.backends.cpu.lowering.steps import KernelStep, Placed, row_strides
from twofold.backends.cpu.lowering.views import matrix, pixel_distance
from twofold.backends.cpu.lowering.waiting import Pending
from twofold.backends.cpu.machine import Machine
from twofold.base import flags
from twofold.base.dtypes import bfloat16, float16, float32
from twofold.ir import Node, Value

if TYPE_CHECKING:
    from twofold.backends.cpu.lowering.lower import Lowering

_POOLS = {"max_pool": "max", "max_pool_grad": "max", "avg_pool": "mean", "avg_pool_grad": "mean"}


@functools.lru_cache(maxsize=512)
def _remembered(algorithms: str, generate: Any, *arguments: Any) -> Any:
    return generate(*arguments)


def _generated(generate: Any, *arguments: Any) -> Any:
    """A kernel, generated once for equal arguments (an epilogue is equal only to itself) while the same algorithms are
    allowed."""
    return _remembered(flags.get("TWOFOLD_CONV"), generate, *arguments)


def _suits(node: Node) -> bool:
    return _is_float32(node) and all(v.ndim == 4 and 0 not in v.shape for v in (*node.inputs, *node.outputs))


def _is_float32(node: Node) -> bool:
    return all(v.dtype is float32 for v in (*node.inputs, *node.outputs))


def _is_bfloat16(node: Node) -> bool:
    return all(v.dtype is bfloat16 for v in (*node.inputs, *node.outputs))


def takes_bf16(machine: Machine, node: Node) -> bool:
    """Whether a kernel computes this node of bfloat16 as it stands, by dot products of pairs."""
    if not _is_bfloat16(node) or any(0 in v.shape for v in (*node.inputs, *node.outputs)):
        return False
    if node.op.name == "matmul":
        k = int(node.inputs[0].shape[-1])
        return machine.bf16_dots and k % 2 == 0 and k > outer.FEW
    return node.op.kind == "conv" and node.inputs[0].ndim == 4 and choose.takes_bf16(machine, _conv(node))


def takes_pool(machine: Machine, node: Node) -> bool:
    """Whether a kernel computes this pool, or gradient of one, from and to the dtype that its arrays have."""
    y, kind = node.outputs[0], _POOLS.get(node.op.name)
    if kind is None or any(v.ndim != 4 or 0 in v.shape or v.dtype is not y.dtype for v in (*node.inputs, y)):
        return False
    if y.dtype is float32 or not node.op.name.endswith("_grad"):
        return y.dtype in (float32, bfloat16, float16)
    return y.dtype in (bfloat16, float16) and pool.narrows(machine, _pool(node, y, node.inputs[-1]), kind)


def takes(machine: Machine, node: Node) -> bool:
    """Whether a kernel computes this node of 16-bit floats as it stands."""
    return takes_bf16(machine, node) or takes_pool(machine, node)


def _takes_conv(low: Lowering, node: Node) -> bool:
    return _suits(node) or takes_bf16(low.machine, node)


def _conv(node: Node) -> Conv:
    """The convolution that a node computes, or a gradient of which."""
    a, (first, second), out = node.attrs, (v.shape for v in node.inputs), node.outputs[0].shape
    x, y, kernel = {
        "conv": (first, out, second), "conv_input_grad": (out, first, second), "conv_weight_grad": (first, second, out),
    }[node.op.name]  # fmt: skip
    n, c, h, w = map(int, x)
    sizes = int(y[1]), int(kernel[2]), int(kernel[3])
    return Conv(n, h, w, c, *sizes, a["strides"], a["padding"], a["dilation"], a["groups"])


def _weights(low: Lowering, w: Value, shape: Conv, choice: choose.Choice) -> Buffer:
    """The weights as the chosen kernel reads them; made once a program."""
    key = (w, choice.weights, tuple(step.kernel.symbol for step in choice.prepare))
    if key not in low.packs:
        steps = choice.prepare
        if choice.algorithm in ("lanes", "fold"):
            at: Placed | Buffer = low.rows(w)
        else:
            at, steps = _packed(low, w, shape, choice.weights), steps[1:]
        for step in steps:
            out = Buffer(float32, step.size, "weights")
            low.kernel(step.kernel, [at], out)
            at = out
        low.packs[key] = at.buffer if isinstance(at, Placed) else at
    return low.packs[key]


def _by_bricks(plain: Placed, packed: weights.Packed) -> bool:
    return plain.is_rows and plain.buffer.dtype is float32 and repack.fits(packed)


def _packed(low: Lowering, w: Value, shape: Conv, packed: weights.Packed) -> Buffer:
    """The weights in packed order: brick by brick where they lie as users see them, else by a nest."""
    placed, kept = low.places.get(w), _kept(w)
    if kept is not None and kept.attrs["packed"] == packed:
        return low.places[kept.inputs[0]].buffer
    out = Buffer(bfloat16, 2 * packed.size, "packed") if packed.pairs else Buffer(float32, packed.size, "packed")
    if kept is not None and repack.turns(kept.attrs["packed"], packed):
        kernel = _generated(repack.turn, low.machine, kept.attrs["packed"], packed)
        low.kernel(kernel, [low.places[kept.inputs[0]].buffer], out)
    elif placed is not None and _by_bricks(placed, packed):
        kernel = _generated(repack.pack, low.machine, packed)
        low.kernel(kernel, [placed], out)
    else:
        pack(low, low.at(w), packed, shape.cg if packed.forward else shape.og, out)
    return out


def _kept(w: Value) -> Node | None:
    """The node that says in which order weights lie that stay packed between calls (``lowering/between.py``)."""
    node = w.producer
    return node if node is not None and node.op.name == "unpack_weights" else None


def kept_weights(machine: Machine, node: Node) -> weights.Packed | None:
    """The order in which the kernels for a convolution, or a gradient of one, find or leave weights that stay packed; None
    if they are to be plain."""
    return choose.kept_weights(machine, _conv(node)) if _suits(node) else None


def unpack_weights(low: Lowering, node: Node) -> None:
    """Nothing is done for it: kernels read the packed weights, and whoever else does reads them by their index."""
    source, packed = low.places[node.inputs[0]], node.attrs["packed"]
    low.formulas[node.outputs[0]] = lambda index: source.at([place(packed, index)])


def pack_weights(low: Lowering, node: Node) -> None:
    """The kernel of the gradient has left it so (``weight_grad``)."""
    if node.outputs[0] not in low.places:
        packed, target = node.attrs["packed"], low.allocate(node.outputs[0])
        pack(low, low.at(node.inputs[0]), packed, packed.ins, target.buffer)
        low.result(node.outputs[0], target)


def conv(low: Lowering, node: Node) -> bool:
    """The forward convolution."""
    return _takes_conv(low, node) and _convolve(low, node, choose.forward)


def input_grad(low: Lowering, node: Node) -> bool:
    """The gradient with respect to the input."""
    return _takes_conv(low, node) and _convolve(low, node, choose.data_gradient)


def _convolve(low: Lowering, node: Node, pick: Any) -> bool:
    (x, w), shape = node.inputs, _conv(node)
    dtype = x.dtype
    source, ldx = low.channel_pairs(x) if dtype is bfloat16 else low.channels_last(x)
    target, constant = low.allocate(node.outputs[0], CHANNELS_LAST), w in low.unchanging

    def emit(epilogue: Any, place: Placed, extra: list[tuple[Buffer, int]], nodes: list[Node]) -> None:
        if by_planes(epilogue, pixel_distance(place)):
            return emit_planes(epilogue, place, extra, nodes, False)
        choice = _generated(pick, low.machine, shape, epilogue, None, constant, ldx, pixel_distance(place), dtype)
        weight = _weights(low, w, shape, choice)
        low.kernel(choice.kernel, [source, weight], place, nodes, extra)

    def by_planes(epilogue: Any, ldy: int | None) -> bool:
        suits = pick is choose.forward and dtype is float32 and ldx == 1
        return suits and planes.fits(low.machine, shape, epilogue, ldy or 0)

    def emit_planes(
        epilogue: Any, place: Placed, extra: list[tuple[Buffer, int]], nodes: list[Node], pools: bool
    ) -> None:
        weight = low.rows(w)
        kernel = _generated(planes.forward, low.machine, shape, epilogue, pools)
        low.kernel(kernel, [source, weight], place, nodes, extra)

    def pooled(window: pool.Pool, waiting: Pending, place: Placed, nodes: list[Node]) -> bool:
        if not by_planes(waiting.steps, shape.o) or not planes.fits_pool(low.machine, shape, window):
            return False
        emit_planes(waiting.steps, place, waiting.extra, [*waiting.nodes, *nodes], True)
        return True

    parts = functools.partial(choose.parts, low.machine, shape, constant, ldx, dtype, pick is choose.forward)
    low.waiting.defer(node, target, emit, parts, pooled=pooled)
    return True


def weight_grad(low: Lowering, node: Node) -> bool:
    """The gradient with respect to the weights, brought back to the plain order if it is not to stay as it is."""
    if not _takes_conv(low, node):
        return False
    (x, g), dw, shape = node.inputs, node.outputs[0], _conv(node)
    a, ldx = low.channels_last(x)
    b, ldy = low.channels_last(g)
    choice = _generated(choose.weight_gradient, low.machine, shape, ldx, ldy, x.dtype)
    order = Buffer(float32, choice.weights.size, "packed gradient")
    low.kernel(choice.kernel, [a, b], order, [node])
    kept = next((user for user in low.users.get(dw, ()) if user.op.name == "pack_weights"), None)
    if kept is not None and kept.attrs["packed"] == choice.weights:
        low.result(kept.outputs[0], Placed(order, (order.size,), (1,)))
        if dw not in low.outputs:
            return True
    target = low.allocate(dw)
    if choice.algorithm == "lanes":
        plain = weights.repack(low.machine, choice.weights, choose.plain_weights(low.machine, shape))
        low.kernel(plain, [order], target, [node])
    elif _by_bricks(target, choice.weights):
        plain = _generated(repack.unpack, low.machine, choice.weights)
        low.kernel(plain, [order], target, [node])
    else:
        unpack(low, order, choice.weights, target)
    low.result(dw, target)
    return True


def interleaved(low: Lowering, source: Placed, target: Placed) -> bool:
    """A few dense planes copied to channels-last images; whether there is a kernel for it."""
    if len(source.shape) != 4 or source.strides != row_strides(source.shape) or source.buffer.dtype is not float32:
        return False
    n, c, h, w = source.shape
    if not interleave.fits(low.machine, c, h * w):
        return False
    low.waiting.flush([source.buffer])
    kernel = _generated(interleave.channels_last, low.machine, n, c, h * w)
    low.kernel(kernel, [source], target)
    return True


def matmul(low: Lowering, node: Node) -> bool:
    """Dense products, either operand transposed, one of them possibly shared by the batch."""
    pairs = takes_bf16(low.machine, node)
    if not pairs and (not _is_float32(node) or any(0 in v.shape for v in (*node.inputs, *node.outputs))):
        return False
    (a, b), y = node.inputs, node.outputs[0]
    places = [low.viewed(v) for v in (a, b)]
    forms = [matrix(p) for p in places]
    if None in forms:
        places = [p if f else low.dense(v) for p, f, v in zip(places, forms, (a, b))]
        forms = [matrix(p) for p in places]
    (na, ta), (nb, tb) = forms  # type: ignore[misc]
    batch = math.prod(map(int, y.shape[:-2]))
    lead = tuple(y.shape[:-2])
    for v, count in ((a, na), (b, nb)):
        if count not in (1, batch) or (count != 1 and tuple(v.shape[:-2]) != lead[len(lead) - v.ndim + 2 :]):
            return False
    m, k, n = int(a.shape[-2]), int(a.shape[-1]), int(b.shape[-1])
    shape = gemm.Matmul(m, k, n, batch, ta, tb, na > 1, nb > 1)
    target = low.allocate(y)

    def emit(epilogue: Any, place: Placed, extra: list[tuple[Buffer, int]], nodes: list[Node]) -> None:
        kernel = gemm.matmul(low.machine, shape, epilogue, pairs=pairs)
        low.kernel(kernel, places, place, nodes, extra)

    low.waiting.defer(node, target, emit, narrows=pairs or gemm.once(low.machine, shape))
    return True


def _pool(node: Node, x: Value, y: Value) -> pool.Pool:
    a = node.attrs
    n, c, h, w = map(int, x.shape)
    dilation, include_pad = a.get("dilation") or (1, 1), a.get("include_pad", False)
    out = int(y.shape[2]), int(y.shape[3])
    return pool.Pool(n, h, w, c, *out, a["window"], a["strides"], a["padding"], dilation, include_pad, x.dtype)


def pool_forward(low: Lowering, node: Node) -> bool:
    """Max and average pooling."""
    if not takes_pool(low.machine, node):
        return False
    x, y = node.inputs[0], node.outputs[0]
    source, ldx = low.channels_last(x)
    kind = _POOLS[node.op.name]
    target = low.allocate(y, CHANNELS_LAST)

    def emit(epilogue: Any, place: Placed, extra: list[tuple[Buffer, int]], nodes: list[Node]) -> None:
        ldy, shape = pixel_distance(place) or 0, _pool(node, x, y)
        if kind == "max" and not epilogue and ldy == shape.c and low.waiting.into_pool(x, node, shape, place, nodes):
            return
        kernel = pool.forward(low.machine, shape, kind, epilogue, ldx, ldy)
        low.kernel(kernel, [source], place, nodes, extra)

    low.waiting.defer(node, target, emit, joins=kind == "max")
    return True


def pool_grad(low: Lowering, node: Node) -> bool:
    """Their gradients."""
    if not takes_pool(low.machine, node):
        return False
    g, y = node.inputs[-1], node.outputs[0]
    shape = _pool(node, y, g)
    target = low.allocate(y, CHANNELS_LAST)
    given = [low.channels_last(v) for v in node.inputs]
    kind = _POOLS[node.op.name]
    windows = pool.gathered(low.machine, shape) if kind == "max" else None
    if windows is not None:
        return _pool_grad_with_epilogue(low, node, shape, target, given, windows)
    ldx = given[0][1] if kind == "max" else 0
    kernel = pool.gradient(low.machine, shape, kind, ldx, given[-1][1], pixel_distance(target) or 0)
    low.kernel(kernel, [p for p, _ in given], target, [node])
    low.result(y, target)
    return True


def _pool_grad_with_epilogue(
    low: Lowering, node: Node, shape: pool.Pool, target: Placed, given: list[tuple[Placed, int]], windows: Any
) -> bool:
    def emit(epilogue: Any, place: Placed, extra: list[tuple[Buffer, int]], nodes: list[Node]) -> None:
        distances = [*(ld for _, ld in given), pixel_distance(place) or 0]
        kernel = windows.gradient(low.machine, shape, epilogue, *distances)
        low.kernel(kernel, [p for p, _ in given], place, nodes, extra)

    low.waiting.defer(node, target, emit, functools.partial(windows.parts, shape))
    return True


OWN: dict[str, Any] = {"pack_weights": pack_weights, "unpack_weights": unpack_weights}

__all__ = ["OWN", "KernelStep", "conv", "input_grad", "matmul", "pool_forward", "pool_grad", "weight_grad"]
