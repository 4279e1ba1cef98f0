"""Random graphs: shapes with tails, broadcasts, reductions, movement, products, convolutions with odd windows, pools.

A graph is a function of its family and seed alone. ``Maker`` is the family "plain"; the others grow networks of images
with their gradients, training steps, and graphs of integers and control flow (``FAMILIES`` in ``fuzz_check``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from twofold.base.dtypes import as_dtype
from twofold.ir import Builder, Graph, Spec, Value, recording
from twofold.ops import arrange, conv, elementwise, gather, matmul, movement, pool, reduction

SIZES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 33)
UNARY = ("negative", "abs", "exp", "tanh", "sigmoid", "relu", "square", "sin", "erf", "floor", "sign")
BINARY = ("add", "subtract", "multiply", "maximum", "minimum")
LARGEST = 40_000  # elements of a value


class Maker:
    """Grows a graph by random ops on values made so far."""

    def __init__(self, seed: int, dtype: str = "float32", nodes: int = 12):
        self.rng = np.random.default_rng(seed)
        self.builder = Builder(f"fuzz{seed}")
        self.dtype = as_dtype(dtype)
        self.values: list[Value] = []
        self.start()
        steps = self.steps()
        with recording(self.builder):
            for _ in range(nodes):
                made = steps[int(self.rng.integers(len(steps)))]()
                if 0 < np.prod(made.shape) <= LARGEST:
                    self.values.append(made)

    def start(self) -> None:
        """The inputs."""
        self.images = self.rng.random() < 0.5
        for i in range(int(self.rng.integers(1, 4))):
            shape = self.shape(4 if self.images and i == 0 else None)
            self.values.append(self.builder.input(Spec(shape, self.dtype), f"x{i}"))

    def steps(self) -> list[Callable[[], Value]]:
        """What may come next; what stands twice comes twice as often."""
        steps: list[Callable[[], Value]] = [
            self.unary, self.unary, self.binary, self.binary, self.broadcast, self.reduce, self.move, self.move, self.concat,
            self.product, self.where, self.softmax, self.take,
        ]  # fmt: skip
        return steps + [self.conv, self.conv, self.conv, self.pool, self.conv_grad] if self.images else steps

    def finished(self) -> Graph:
        """The graph: the last values and some in the middle are outputs."""
        count = int(self.rng.integers(1, 4))
        picked = [self.values[-1], *(self.pick() for _ in range(count - 1))]
        return self.builder.finish(picked)

    # ---- choices --------------------------------------------------------------------------------------------------
    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        rank = int(self.rng.integers(0, 5)) if rank is None else rank
        return tuple(int(self.rng.choice(SIZES[: 12 - 2 * max(0, rank - 2)])) for _ in range(rank))

    def pick(self, rank: int | None = None) -> Value:
        """A value made before, recent ones preferred."""
        found = [v for v in self.values if rank is None or v.ndim == rank]
        if not found:
            first = self.values[0]
            return movement.broadcast_to(
                reduction.sum(first) if first.ndim else elementwise.relu(first), self.shape(rank)
            )
        weights = np.arange(1, len(found) + 1, dtype=float)
        return found[int(self.rng.choice(len(found), p=weights / weights.sum()))]

    def same(self, v: Value) -> Value:
        """Something that broadcasts with ``v``."""
        found = [w for w in self.values if w.shape == v.shape]
        if found and self.rng.random() < 0.7:
            return found[int(self.rng.integers(len(found)))]
        kept = tuple(d if self.rng.random() < 0.6 else 1 for d in v.shape)
        axes = tuple(i for i, (a, b) in enumerate(zip(kept, v.shape)) if a != b)
        return reduction.mean(v, axis=axes, keepdims=True) if axes else v

    # ---- ops ------------------------------------------------------------------------------------------------------
    def unary(self) -> Value:
        v = self.pick()
        return getattr(elementwise, str(self.rng.choice(UNARY)).replace("abs", "abs_"))(elementwise.clip(v, -4.0, 4.0))

    def binary(self) -> Value:
        v = self.pick()
        return getattr(elementwise, str(self.rng.choice(BINARY)))(v, self.same(v)) * 0.5

    def broadcast(self) -> Value:
        v = self.pick()
        return movement.broadcast_to(v, (int(self.rng.choice(SIZES[:6])), *v.shape)) + 0.25

    def where(self) -> Value:
        v = self.pick()
        return elementwise.where(v > self.same(v), v, self.same(v) * 0.5)

    def reduce(self) -> Value:
        v = self.pick()
        if not v.ndim:
            return v * 2.0
        axes = tuple(i for i in range(v.ndim) if self.rng.random() < 0.5) or (v.ndim - 1,)
        name = str(self.rng.choice(["sum", "mean", "max", "min", "var"]))
        return getattr(reduction, name)(v, axis=axes, keepdims=bool(self.rng.random() < 0.5))

    def softmax(self) -> Value:
        v = elementwise.clip(self.pick(), -5.0, 5.0)
        if not v.ndim:
            return v
        e = elementwise.exp(v - reduction.max(v, axis=-1, keepdims=True))
        return e / reduction.sum(e, axis=-1, keepdims=True)

    def move(self) -> Value:
        v = self.pick()
        kind = int(self.rng.integers(5))
        if kind == 0 or not v.ndim:
            return movement.reshape(v, self.factored(int(np.prod(v.shape))))
        if kind == 1:
            return movement.permute_dims(v, tuple(map(int, self.rng.permutation(v.ndim))))
        if kind == 2:
            ranges = []
            for d in v.shape:
                start = int(self.rng.integers(0, d))
                ranges.append((start, int(self.rng.integers(start + 1, int(d) + 1)), int(self.rng.integers(1, 3))))
            return movement.slice_(v, ranges)
        if kind == 3:
            widths = [(int(self.rng.integers(0, 3)), int(self.rng.integers(0, 3))) for _ in v.shape]
            return movement.pad(
                v, widths, 0.5 if v.dtype.is_floating else 1, [int(self.rng.integers(0, 2)) for _ in v.shape]
            )
        return arrange.flip(v, axis=int(self.rng.integers(v.ndim)))

    def factored(self, size: int) -> tuple[int, ...]:
        out = []
        while size > 1 and len(out) < 4:
            factors = [d for d in range(2, size + 1) if size % d == 0]
            factor = int(self.rng.choice(factors))
            out.append(factor)
            size //= factor
        return (*out, size) if size > 1 or not out else tuple(out)

    def concat(self) -> Value:
        v = self.pick()
        if not v.ndim:
            return v
        axis = int(self.rng.integers(v.ndim))
        return movement.concat([v, self.same(v) * movement.broadcast_to(v, v.shape), v], axis)

    def product(self) -> Value:
        v = self.pick()
        if v.ndim < 2:
            return v * v
        turned = movement.matrix_transpose(v)
        return matmul.matmul(v * 0.25, turned) if self.rng.random() < 0.6 else matmul.matmul(turned * 0.25, v)

    def take(self) -> Value:
        v = self.pick()
        if not v.ndim:
            return v
        axis = int(self.rng.integers(v.ndim))
        size = int(v.shape[axis])
        return gather.take(v, self.rng.integers(-size, size, int(self.rng.integers(1, 6))), axis=axis)

    def window(self, v: Value, least: int = 1) -> dict:
        kernel = tuple(int(self.rng.integers(least, 4)) for _ in range(2))
        dilation = tuple(int(self.rng.integers(1, 3)) for _ in range(2))
        padding = tuple((int(self.rng.integers(0, 3)), int(self.rng.integers(0, 3))) for _ in range(2))
        fits = all(int(d) + sum(p) >= (k - 1) * e + 1 for d, p, k, e in zip(v.shape[2:], padding, kernel, dilation))
        if not fits:
            kernel, dilation, padding = (1, 1), (1, 1), ((0, 0), (0, 0))
        strides = tuple(int(self.rng.integers(1, 4)) for _ in range(2))
        return {"kernel": kernel, "strides": strides, "padding": padding, "dilation": dilation}

    def weights(self, *shape: int) -> Value:
        return self.builder.constant(
            (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(self.dtype.numpy)
        )

    def conv(self) -> Value:
        v = self.pick(4)
        window = self.window(v)
        channels = int(v.shape[1])
        groups = int(self.rng.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0]))
        if self.rng.random() < 0.4:
            window.update(kernel=(3, 3), strides=(1, 1), dilation=(1, 1), padding=((1, 1), (1, 1)))
        w = self.weights(groups * int(self.rng.choice((1, 2, 5, 16, 20))), channels // groups, *window.pop("kernel"))
        return conv.conv(v, w, groups=groups, **window)

    def conv_grad(self) -> Value:
        v = self.pick(4)
        window = self.window(v)
        w = self.weights(int(self.rng.choice((1, 3, 16, 18))), int(v.shape[1]), *window.pop("kernel"))
        y = conv.conv(v, w, groups=1, **window)
        if self.rng.random() < 0.5:
            return conv.conv_input_grad(y, w, groups=1, input_shape=v.shape[2:], **window)
        return conv.conv_weight_grad(v, y, groups=1, kernel=w.shape[2:], **window) * 0.01

    def pool(self) -> Value:
        v = self.pick(4)
        window = self.window(v)
        kernel = window.pop("kernel")
        window["padding"] = tuple(
            (min(a, (k - 1) // 2), min(b, (k - 1) // 2)) for (a, b), k in zip(window["padding"], kernel)
        )
        dilation = window.pop("dilation")
        if any(
            int(d) + sum(p) < (k - 1) * e + 1 for d, p, k, e in zip(v.shape[2:], window["padding"], kernel, dilation)
        ):
            kernel, dilation, window["padding"] = (1, 1), (1, 1), ((0, 0), (0, 0))
        if self.rng.random() < 0.5:
            return pool.max_pool(v, window=kernel, dilation=dilation, **window)
        if any(int(d) + sum(p) < k for d, p, k in zip(v.shape[2:], window["padding"], kernel)):
            return v
        return pool.avg_pool(v, window=kernel, include_pad=bool(self.rng.random() < 0.5), **window)
