"""Shortcuts of residual networks where the shape changes: A, B and C of He et al. 2015, section 4.1."""

from __future__ import annotations

from typing import Any

import twofold as tw
from twofold import nn
from twofold.base.errors import ArgumentError
from twofold.nn import functional as F


class PaddedShortcut(nn.Module):
    """Option A: every second pixel (or, ``average``, the mean of each 2x2), and zeros for the new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, average: bool = False):
        self.more, self.stride, self.average = out_channels - in_channels, stride, average

    def forward(self, x: Any) -> Any:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride) if self.average else x[:, :, :: self.stride, :: self.stride]
        return tw.pad(x, [(0, 0), (0, self.more), (0, 0), (0, 0)])


def shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """The shortcut of a block; None is the identity.

    "A": zeros for new channels; "A-average": the same after averaging 2x2; "B": a 1x1 convolution where the shape
    changes; "C": a 1x1 convolution everywhere.
    """
    same = in_channels == out_channels and stride == 1
    if option not in ("A", "A-average", "B", "C"):
        raise ArgumentError(f"shortcut {option!r} is unknown; expected 'A', 'A-average', 'B' or 'C'")
    if same and option != "C":
        return None
    if option.startswith("A"):
        return PaddedShortcut(in_channels, out_channels, stride, average=option == "A-average")
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
