"""Linear layers, and layers that only rearrange."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.nn import functional as F
from twofold.nn import init
from twofold.nn.module import Module, Parameter, check_sizes


class Linear(Module):
    """``x @ weight.T + bias``: ``(..., in_features)`` to ``(..., out_features)``; ``weight`` is ``(out, in)``."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = "float32", device: Any = None
    ):
        check_sizes(self, 0, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.blank((out_features, in_features), dtype, device))
        self.bias = Parameter(np.zeros(out_features), dtype=dtype, device=device) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(in_features), as PyTorch."""
        init.default_(self.weight, self.bias)

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Identity(Module):
    """Gives back what it gets."""

    def __init__(self, *_: Any, **__: Any): ...

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """Dimensions ``start_dim`` to ``end_dim`` merged into one: ``(N, C, H, W)`` to ``(N, C*H*W)`` by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return F.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Dimension ``dim`` split into ``sizes``."""

    def __init__(self, dim: int, sizes: tuple[int, ...]):
        self.dim, self.sizes = dim, tuple(sizes)

    def forward(self, x: Any) -> Any:
        dim = self.dim % x.ndim
        return x.reshape((*x.shape[:dim], *self.sizes, *x.shape[dim + 1 :]))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, sizes={self.sizes}"
