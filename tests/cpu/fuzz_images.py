"""Random networks of images: convolutions of every kind, batch norm, pools, nested concatenations, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from graph_fuzz import Maker

from twofold.autodiff.gradients import gradients
from twofold.ir import Graph, Spec, Value, recording
from twofold.ops import conv, elementwise, movement, normalization, pool, reduction

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 32, 33, 48)
PLACES = (1, 2, 3, 5, 6, 7, 8, 11, 14)


class ImageMaker(Maker):
    """Grows networks of images ``(N, C, H, W)``; weights are inputs, so that gradients reach them."""

    def start(self) -> None:
        n, h, w = (int(self.rng.choice(s)) for s in ((1, 2, 3), PLACES, PLACES))
        for i in range(int(self.rng.integers(1, 3))):
            self.values.append(self.parameter((n, int(self.rng.choice(CHANNELS)), h, w), f"x{i}"))

    def steps(self) -> list[Any]:
        return [
            self.convolve, self.convolve, self.convolve, self.grouped, self.grouped, self.norm, self.norm, self.join, self.join,
            self.join, self.join_elsewhere, self.cut, self.pool, self.add, self.relu, self.scale, self.flat, self.lrn,
        ]  # fmt: skip

    def finished(self) -> Graph:
        """The last values and, for half the graphs, gradients for everything that was given."""
        outputs = [self.values[-1], self.pick(), self.pick()][: int(self.rng.integers(1, 4))]
        if self.rng.random() < 0.6:
            with recording(self.builder):
                total = [reduction.mean(elementwise.square(y)) for y in outputs]
                found = gradients(total, self.builder.graph.inputs)
            outputs += [g for g in found if g is not None]
        return self.builder.finish(outputs)

    # ---- choices --------------------------------------------------------------------------------------------------
    def parameter(self, shape: tuple[int, ...], name: str = "w") -> Value:
        value = self.builder.input(Spec(shape, self.dtype), name)
        value.requires_grad = True
        return value

    def image(self) -> Value:
        return self.pick(4)

    def like(self, v: Value, axes: tuple[int, ...] = (0, 1, 2, 3)) -> Value:
        """A value made before that agrees with ``v`` along ``axes``; ``v`` itself if there is no other."""
        found = [w for w in self.values if w.ndim == 4 and all(w.shape[a] == v.shape[a] for a in axes)]
        return found[int(self.rng.integers(len(found)))]

    def weighted(self, v: Value, outs: int, ins: int, window: dict[str, Any], groups: int = 1) -> Value:
        kernel = window.pop("kernel")
        w = self.parameter((outs, ins, *kernel)) * float(1.0 / np.sqrt(ins * np.prod(kernel)))
        return conv.conv(v, w, groups=groups, **window)

    def some_window(self, v: Value) -> dict[str, Any]:
        if self.rng.random() < 0.5:
            k = int(self.rng.choice((1, 3)))
            return {"kernel": (k, k), "strides": (1, 1), "padding": ((k // 2, k // 2),) * 2, "dilation": (1, 1)}
        return self.window(v)

    # ---- steps ----------------------------------------------------------------------------------------------------
    def convolve(self) -> Value:
        v = self.image()
        return self.weighted(v, int(self.rng.choice(CHANNELS)), int(v.shape[1]), self.some_window(v))

    def grouped(self) -> Value:
        """Groups of any number of channels that divides; depthwise among them."""
        v = self.image()
        c = int(v.shape[1])
        groups = int(self.rng.choice([g for g in range(1, c + 1) if c % g == 0]))
        outs = c // groups if self.rng.random() < 0.5 else int(self.rng.choice((1, 2, 3, 8, 12)))
        return self.weighted(v, groups * min(outs, max(1, 64 // groups)), c // groups, self.some_window(v), groups)

    def norm(self) -> Value:
        v = self.image()
        weight, bias = (self.parameter((int(v.shape[1]),), name) for name in ("scale", "shift"))
        y, mean, variance = normalization.batch_norm_train(v, weight, bias, 1e-2)
        if self.rng.random() < 0.3:
            self.values.append(mean + variance)
        return elementwise.relu(y) if self.rng.random() < 0.5 else y

    def join(self) -> Value:
        """Along the channels: up to four parts, the same one twice, parts that are concatenations themselves."""
        v = self.image()
        parts = [v, *(self.like(v, (0, 2, 3)) for _ in range(int(self.rng.integers(1, 4))))]
        y = movement.concat([parts[i] for i in self.rng.permutation(len(parts))], 1)
        return y if int(y.shape[1]) <= 96 else v * 0.5

    def join_elsewhere(self) -> Value:
        v, axis = self.image(), int(self.rng.choice((0, 2, 3)))
        y = movement.concat([v, self.like(v, tuple(a for a in range(4) if a != axis))], axis)
        return y if max(map(int, y.shape[2:])) <= 20 and int(y.shape[0]) <= 6 else v + 0.5

    def cut(self) -> Value:
        """Some of the channels, or of the places."""
        v = self.image()
        axis = int(self.rng.choice((1, 1, 1, 2, 3)))
        start = int(self.rng.integers(0, v.shape[axis]))
        stop = int(self.rng.integers(start + 1, int(v.shape[axis]) + 1))
        return movement.slice_along(v, axis, start, stop, int(self.rng.choice((1, 1, 2))))

    def add(self) -> Value:
        v = self.image()
        y = v + self.like(v)
        return elementwise.relu(y) if self.rng.random() < 0.5 else y

    def relu(self) -> Value:
        return elementwise.relu(self.image())

    def scale(self) -> Value:
        """Squeeze and excitation's product, a bias, or padding."""
        v, kind = self.image(), int(self.rng.integers(3))
        if kind == 0:
            return v * elementwise.sigmoid(reduction.mean(v, axis=(2, 3), keepdims=True))
        if kind == 1:
            return v + movement.reshape(self.parameter((int(v.shape[1]),), "b"), (1, v.shape[1], 1, 1))
        return movement.pad(v, [(0, 0), (0, int(self.rng.integers(2))), (1, 0), (0, 1)])

    def flat(self) -> Value:
        """A reduction over some axes of an image, or a product of all its numbers."""
        v, kind = self.image(), int(self.rng.integers(3))
        if kind == 0:
            axes = tuple(i for i in range(4) if self.rng.random() < 0.5) or (1,)
            return getattr(reduction, str(self.rng.choice(["sum", "mean", "max", "var"])))(v, axis=axes)
        rows = movement.flatten(v, 1) if kind == 1 else reduction.mean(v, axis=(2, 3))
        size = int(rows.shape[1])
        return rows @ (self.parameter((size, int(self.rng.choice((1, 3, 10, 17))))) * (1.0 / float(np.sqrt(size))))

    def lrn(self) -> Value:
        return normalization.local_response_norm(self.image(), int(self.rng.choice((3, 5))), alpha=0.1)

    def pool(self) -> Value:
        v = self.image()
        if self.rng.random() < 0.5:
            return super().pool()
        if min(map(int, v.shape[2:])) < 2:
            return v * 2.0
        common = {"window": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
        if self.rng.random() < 0.7:
            return pool.max_pool(v, dilation=(1, 1), **common)
        return pool.avg_pool(v, include_pad=True, **common)
