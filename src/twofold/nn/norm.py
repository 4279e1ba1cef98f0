"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError, ShapeError
from twofold.base.shapes import show
from twofold.nn import functional as F
from twofold.nn.module import Module, Parameter, check_sizes
from twofold.tensor.variable import Variable


class _BatchNorm(Module):
    """Batch normalisation (Ioffe and Szegedy 2015). ``running_mean`` and ``running_var`` move by ``momentum`` towards
    each training batch's (None: their plain average), and normalise in ``eval`` mode."""

    ranks: tuple[int, ...]

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, *, dtype: Any = "float32", device: Any = None,
    ):  # fmt: skip
        check_sizes(self, 0, num_features=num_features)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        place = {"dtype": dtype, "device": device}
        self.weight = Parameter(np.ones(num_features), **place) if affine else None
        self.bias = Parameter(np.zeros(num_features), **place) if affine else None
        self.running_mean = Variable(np.zeros(num_features), **place) if track_running_stats else None
        self.running_var = Variable(np.ones(num_features), **place) if track_running_stats else None
        self.num_batches_tracked = Variable(np.zeros((), np.int64), device=device) if track_running_stats else None

    def forward(self, x: Any) -> Any:
        if x.ndim not in self.ranks:
            wanted = " or ".join(map(str, self.ranks))
            raise ShapeError(f"{type(self).__name__}: x has shape {show(x.shape)}; expected {wanted} dimensions")
        training = self.training
        momentum: Any = self.momentum
        if training and self.num_batches_tracked is not None:
            self.num_batches_tracked.assign(self.num_batches_tracked + 1)
            precise = "float64" if x.dtype == "float64" else "float32"
            momentum = 1.0 / self.num_batches_tracked.to(dtype=precise) if momentum is None else momentum
        batch = training or self.running_mean is None
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, batch, momentum, self.eps
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of ``(N, C)`` or ``(N, C, L)``."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of ``(N, C, H, W)``."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of ``(N, C, D, H, W)``."""

    ranks = (5,)


class LayerNorm(Module):
    """Normalisation of each item over its last dimensions, of shape ``normalized_shape`` (Ba et al. 2016)."""

    def __init__(
        self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True, *,
        dtype: Any = "float32", device: Any = None,
    ):  # fmt: skip
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        affine, place = elementwise_affine, {"dtype": dtype, "device": device}
        self.weight = Parameter(np.ones(self.normalized_shape), **place) if affine else None
        self.bias = Parameter(np.zeros(self.normalized_shape), **place) if affine and bias else None

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Normalisation of each item over ``num_groups`` groups of its channels (Wu and He 2018)."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *,
        dtype: Any = "float32", device: Any = None,
    ):  # fmt: skip
        check_sizes(self, num_groups=num_groups)
        check_sizes(self, 0, num_channels=num_channels)
        if num_channels % num_groups:
            raise ArgumentError(f"GroupNorm: num_channels={num_channels} does not divide into num_groups={num_groups}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        place = {"dtype": dtype, "device": device}
        self.weight = Parameter(np.ones(num_channels), **place) if affine else None
        self.bias = Parameter(np.zeros(num_channels), **place) if affine else None

    def forward(self, x: Any) -> Any:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class LocalResponseNorm(Module):
    """``x / (k + alpha/size * sum of squares over size neighbouring channels)**beta``.

    PyTorch's constants; for the AlexNet paper (n=5, alpha=1e-4, beta=0.75, k=2, its alpha is not divided by n):
    ``LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)``. For Caffe's AlexNet and GoogLeNet: ``LocalResponseNorm(5)``.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Any) -> Any:
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
