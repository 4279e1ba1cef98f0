"""JAX as a peer: one jitted function over channels-last images; in training its state is donated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import nhwc
import numpy as np
from jax import lax


class Library:
    layout = ("NHWC", "HWIO", "NHWC")
    relu, pad, matmul = staticmethod(jax.nn.relu), staticmethod(jnp.pad), staticmethod(jnp.matmul)
    transpose, reshape = staticmethod(jnp.transpose), staticmethod(jnp.reshape)

    def conv(self, x, w, strides, pads, dilations, groups):
        return lax.conv_general_dilated(
            x, w, strides, pads, rhs_dilation=dilations, dimension_numbers=self.layout, feature_group_count=groups
        )

    def max_pool(self, x, window, strides, pads):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), [(0, 0), *pads, (0, 0)])

    def mean_pool(self, x, window, strides):
        total = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), "VALID")
        return total / (window[0] * window[1])

    def mean(self, x):
        return jnp.mean(x, (1, 2), keepdims=True)

    def concat(self, xs):
        return jnp.concatenate(xs, 3)

    def batch_norm(self, x, w, b, mean, var, eps, training):
        if training:
            mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        scale = w * lax.rsqrt(var + eps)
        count = x.size // x.shape[-1]
        return x * scale + (b - mean * scale), mean, var * (count / (count - 1) if training else 1.0)


def step(folder: Path, mode: str, rate: float, momentum: float) -> Callable[[], Any]:
    graph, lib = nhwc.Graph(folder), Library()
    x = jnp.asarray(np.load(folder / "x.npy").transpose(0, 2, 3, 1).copy())
    y = jnp.asarray(np.load(folder / "y.npy"))
    parameters, running = graph.load(jnp.asarray)
    if mode == "infer":
        infer = jax.jit(lambda p, r, x: graph.forward(lib, p, r, x, False)[0])
        return lambda: np.asarray(infer(parameters, running, x))

    def loss_of(p, r, x, y):
        logits, r = graph.forward(lib, p, r, x, True)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
        return -jnp.mean(picked), r

    def train(state, x, y):
        p, v, r = state
        (loss, r), g = jax.value_and_grad(loss_of, has_aux=True)(p, r, x, y)
        v = jax.tree.map(lambda v, g: momentum * v + g, v, g)
        return loss, (jax.tree.map(lambda p, v: p - rate * v, p, v), v, r)

    jitted = jax.jit(train, donate_argnums=0)
    state = [(parameters, jax.tree.map(jnp.zeros_like, parameters), running)]  # donated: its buffers are used again

    def run():
        loss, state[0] = jitted(state[0], x, y)
        jax.block_until_ready(state[0])
        return np.asarray(loss)

    return run
