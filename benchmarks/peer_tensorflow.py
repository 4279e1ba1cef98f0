"""TensorFlow as a peer: one ``tf.function`` over channels-last images (what Keras 3 runs on this backend)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nhwc
import numpy as np
import tensorflow as tf


class Library:
    relu, matmul = staticmethod(tf.nn.relu), staticmethod(tf.matmul)
    transpose, reshape, pad = staticmethod(tf.transpose), staticmethod(tf.reshape), staticmethod(tf.pad)

    def conv(self, x, w, strides, pads, dilations, groups):
        return tf.nn.conv2d(x, w, strides, [(0, 0), *pads, (0, 0)], dilations=dilations)

    def max_pool(self, x, window, strides, pads):
        if any(map(any, pads)):
            x = tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-np.inf)
        return tf.nn.max_pool2d(x, window, strides, "VALID")

    def mean_pool(self, x, window, strides):
        return tf.nn.avg_pool2d(x, window, strides, "VALID")

    def mean(self, x):
        return tf.reduce_mean(x, (1, 2), keepdims=True)

    def concat(self, xs):
        return tf.concat(xs, 3)

    def batch_norm(self, x, w, b, mean, var, eps, training):
        given = {} if training else {"mean": mean, "variance": var}
        return tf.compat.v1.nn.fused_batch_norm(x, w, b, epsilon=eps, is_training=training, **given)


def step(folder: Path, mode: str, threads: int, rate: float, momentum: float) -> Callable[[], Any]:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    graph, lib, training = nhwc.Graph(folder), Library(), mode == "train"
    grouped = any(op == "Conv" and a["group"] > 1 for op, _, _, a in graph.nodes)  # its CPU kernels have none: XLA's have
    x = tf.constant(np.load(folder / "x.npy").transpose(0, 2, 3, 1).copy())
    y = tf.constant(np.load(folder / "y.npy"))
    if not training:
        constants, running = graph.load(tf.constant)
        infer = tf.function(lambda x: graph.forward(lib, constants, running, x, False)[0], jit_compile=grouped)
        return lambda: infer(x).numpy()
    parameters, running = graph.load(tf.Variable)
    velocity = {k: tf.Variable(tf.zeros_like(v)) for k, v in parameters.items()}

    @tf.function(jit_compile=grouped)
    def train(x, y):
        with tf.GradientTape() as tape:
            logits, after = graph.forward(lib, parameters, running, x, True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        for k, gradient in zip(parameters, tape.gradient(loss, list(parameters.values()))):
            velocity[k].assign(momentum * velocity[k] + gradient)
            parameters[k].assign_sub(rate * velocity[k])
        for k, value in after.items():
            running[k].assign(value)
        return loss

    return lambda: train(x, y).numpy()
