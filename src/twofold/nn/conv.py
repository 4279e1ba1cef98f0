"""Convolution layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError
from twofold.nn import functional as F
from twofold.nn import init
from twofold.nn.module import Module, Parameter, check_sizes
from twofold.ops.layers import each


class _Conv(Module):
    """What convolutions share. ``padding`` is an int, ints, (low, high) pairs, "same" or "valid"."""

    rank: int
    function: Callable[..., Any]
    transposed = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, *, dtype: Any = "float32", device: Any = None,
    ):  # fmt: skip
        check_sizes(self, 0, in_channels=in_channels, out_channels=out_channels)
        check_sizes(self, groups=groups)
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ArgumentError(f"{type(self).__name__}: {what}={channels} does not divide into groups={groups}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = each(kernel_size, self.rank, "kernel_size")
        check_sizes(self, kernel_size=self.kernel_size)
        self.stride, self.dilation = each(stride, self.rank, "stride"), each(dilation, self.rank, "dilation")
        self.padding = each(padding, self.rank, "padding") if hasattr(padding, "__index__") else padding
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        self.weight = Parameter(init.blank(shape, dtype, device))
        self.bias = Parameter(np.zeros(out_channels), dtype=dtype, device=device) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(fan_in), as PyTorch."""
        init.default_(self.weight, self.bias)

    def forward(self, x: Any) -> Any:
        return type(self).function(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        settings = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        usual = {"padding": (0,) * self.rank, "dilation": (1,) * self.rank, "groups": 1}
        settings += [f"{n}={getattr(self, n)!r}" for n, value in usual.items() if getattr(self, n) != value]
        return ", ".join(settings + (["bias=False"] if self.bias is None else []))


class Conv1d(_Conv):
    """Convolution of ``(N, C, L)``; weight ``(out, in/groups, k)``."""

    rank, function = 1, staticmethod(F.conv1d)


class Conv2d(_Conv):
    """Convolution of ``(N, C, H, W)``; weight ``(out, in/groups, kh, kw)``.

    >>> import twofold as tw
    >>> tw.nn.Conv2d(3, 8, 5, stride=2, padding=2)(tw.ones((1, 3, 32, 32))).shape
    (1, 8, 16, 16)
    """

    rank, function = 2, staticmethod(F.conv2d)


class Conv3d(_Conv):
    """Convolution of ``(N, C, D, H, W)``; weight ``(out, in/groups, kd, kh, kw)``."""

    rank, function = 3, staticmethod(F.conv3d)


class _ConvTranspose(_Conv):
    """The transpose of a convolution in its input; weight ``(in, out/groups, *kernel)``."""

    transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, bias: bool = True, dilation: Any = 1, *,
        dtype: Any = "float32", device: Any = None,
    ):  # fmt: skip
        self.output_padding = each(output_padding, self.rank, "output_padding")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype=dtype, device=device
        )

    def forward(self, x: Any) -> Any:
        return type(self).function(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution of ``(N, C, L)``."""

    rank, function = 1, staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution of ``(N, C, H, W)``."""

    rank, function = 2, staticmethod(F.conv_transpose2d)
