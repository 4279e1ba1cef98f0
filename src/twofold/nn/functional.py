"""``tw.nn.functional``: what layers compute, as functions of tensors. Arguments and results are as in PyTorch."""

from __future__ import annotations

from typing import Any

from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import product, show
from twofold.ir import grad_mode
from twofold.nn.statistics import parts_for
from twofold.ops import activation, gather, layers, loss, movement, normalization
from twofold.ops.convert import cast, dim_value
from twofold.tensor import random
from twofold.tensor.functions import lift
from twofold.tensor.tensor import Tensor, unwrap
from twofold.tensor.variable import Variable

# activations
relu, relu6, leaky_relu = lift(activation.relu), lift(activation.relu6), lift(activation.leaky_relu)
prelu, elu, selu = lift(activation.prelu), lift(activation.elu), lift(activation.selu)
gelu, silu, mish = lift(activation.gelu), lift(activation.silu), lift(activation.mish)
sigmoid, tanh, hardtanh = lift(activation.sigmoid), lift(activation.tanh), lift(activation.hardtanh)
hardsigmoid, hardswish = lift(activation.hardsigmoid), lift(activation.hardswish)
softplus, softsign, logsigmoid = lift(activation.softplus), lift(activation.softsign), lift(activation.log_sigmoid)

# layers
linear = lift(layers.linear)
conv1d, conv2d, conv3d = lift(layers.conv1d), lift(layers.conv2d), lift(layers.conv3d)
conv_transpose1d, conv_transpose2d = lift(layers.conv_transpose1d), lift(layers.conv_transpose2d)
conv_transpose3d = lift(layers.conv_transpose3d)
max_pool1d, max_pool2d, max_pool3d = lift(layers.max_pool1d), lift(layers.max_pool2d), lift(layers.max_pool3d)
avg_pool1d, avg_pool2d, avg_pool3d = lift(layers.avg_pool1d), lift(layers.avg_pool2d), lift(layers.avg_pool3d)
adaptive_avg_pool1d, adaptive_avg_pool2d = lift(layers.adaptive_avg_pool1d), lift(layers.adaptive_avg_pool2d)
adaptive_max_pool1d, adaptive_max_pool2d = lift(layers.adaptive_max_pool1d), lift(layers.adaptive_max_pool2d)
adaptive_avg_pool3d, adaptive_max_pool3d = lift(layers.adaptive_avg_pool3d), lift(layers.adaptive_max_pool3d)
layer_norm, group_norm = lift(normalization.layer_norm), lift(normalization.group_norm)
local_response_norm = lift(normalization.local_response_norm)
flatten, one_hot = lift(movement.flatten), lift(gather.one_hot)

# losses
cross_entropy, nll_loss = lift(loss.cross_entropy), lift(loss.nll_loss)
binary_cross_entropy_with_logits = lift(loss.binary_cross_entropy_with_logits)
mse_loss, l1_loss = lift(loss.mse_loss), lift(loss.l1_loss)
huber_loss, smooth_l1_loss = lift(loss.huber_loss), lift(loss.smooth_l1_loss)


def softmax(x: Tensor, axis: int = -1, *, dim: int | None = None) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``axis`` (PyTorch's ``dim``)."""
    return Tensor(activation.softmax(unwrap(x), axis if dim is None else dim))


def log_softmax(x: Tensor, axis: int = -1, *, dim: int | None = None) -> Tensor:
    """``log(softmax(x))`` along ``axis`` (PyTorch's ``dim``), without overflow."""
    return Tensor(activation.log_softmax(unwrap(x), axis if dim is None else dim))


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """``x`` with elements zeroed with probability ``p`` and the rest divided by ``1 - p``; ``x`` if not training."""
    return _dropout(x, p, training, 0)


def dropout2d(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Dropout of whole maps: each channel of each item of ``(N, C, *spatial)`` is zeroed with probability ``p``."""
    if x.ndim < 3:
        raise ShapeError(f"dropout2d: x has shape {show(x.shape)}; expected (N, C, *spatial)")
    return _dropout(x, p, training, x.ndim - 2)


def _dropout(x: Tensor, p: float, training: bool, shared_axes: int) -> Tensor:
    if not 0.0 <= p <= 1.0:
        raise ArgumentError(f"dropout: p={p}; expected a probability in [0, 1]")
    if not training or p == 0.0:
        return x
    return Tensor(layers.dropout(x.value, random.generator().draw(x.device), p, shared_axes=shared_axes))


def batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: Any = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """``x`` normalised per channel: by its own statistics if ``training``, else by the running ones.

    In training, running statistics that are variables move by ``momentum`` towards the batch's mean and its *unbiased*
    variance; the normalisation itself uses the biased one. Within ``nn.batch_statistics(parts)`` each part of the batch has
    its own statistics.
    """
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError("batch_norm: without training, running_mean and running_var are needed")
        statistics = running_mean.value, running_var.value
        return Tensor(normalization.batch_norm(x.value, *statistics, unwrap(weight), unwrap(bias), eps))
    parts = parts_for(x.shape[0])
    count = product(d for i, d in enumerate(x.shape) if i != 1) // parts
    if isinstance(count, int) and count < 2:
        raise ShapeError(
            f"batch_norm: x has shape {show(x.shape)}: one value per channel has no variance to train with"
        )
    if parts > 1:
        apart = normalization.batch_norm_train_in_parts(x.value, unwrap(weight), unwrap(bias), eps, parts)
        y, average, variance = apart
    else:
        y, average, variance = normalization.batch_norm_train(x.value, unwrap(weight), unwrap(bias), eps)
    with grad_mode(False):
        n = dim_value(count, variance.dtype)
        _move(running_mean, average, momentum)
        _move(running_var, variance * (n / (n - 1.0)), momentum)
    return Tensor(y)


def _move(running: Tensor | None, batch: Any, momentum: Any) -> None:
    """``running += momentum * (batch - running)``."""
    if isinstance(running, Variable):
        old = running.value
        share = unwrap(momentum)
        running.assign(Tensor(old * (1.0 - share) + cast(batch, old.dtype) * share))
