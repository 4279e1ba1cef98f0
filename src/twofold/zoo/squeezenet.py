"""SqueezeNet: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", arXiv 1602.07360, 2016.

A Fire module squeezes to few channels by 1x1 convolutions, then expands by 1x1 and 3x3 side by side; no fully connected
layers. Version 1.1 pools earlier and has a smaller first layer: 2.35 times fewer multiply-adds. With bypass (figure 2):
"simple" adds a Fire's input to its output where they have the same channels (fire3, 5, 7, 9); "complex" also does so by
a 1x1 convolution where they have not (fire2, 4, 6, 8). Names are torchvision's.

The paper's map sizes (111, 55, 27, 13) need 227x227 images; 224 gives 109, 54, 27, 13. The paper prints 7.7 MB for the
complex bypass; its arithmetic gives 6.06 MiB.
"""

from __future__ import annotations

from typing import Any

import twofold as tw
from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CENTRE, CROP, QUICK_UNNORMALISED, Recipe, Schedule
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER = Paper(
    "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size",
    "Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer", 2016, arxiv="1602.07360",
)  # fmt: skip
# fire2 to fire9: squeeze channels; each half of the expansion has four times as many
SQUEEZES = (16, 16, 32, 32, 48, 48, 64, 64)


class Fire(nn.Module):
    """1x1 to ``squeeze`` channels, then 1x1 and 3x3, each to ``4 * squeeze``, side by side. ``bypass``: "", "simple",
    "complex"."""

    def __init__(self, in_channels: int, squeeze: int, bypass: str = ""):
        out = 8 * squeeze
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, out // 2, 1)
        self.expand3x3 = nn.Conv2d(squeeze, out // 2, 3, padding=1)
        self.identity = bool(bypass) and in_channels == out
        self.bypass = nn.Conv2d(in_channels, out, 1) if bypass == "complex" and in_channels != out else None

    def forward(self, x: Any) -> Any:
        s = F.relu(self.squeeze(x))
        y = tw.concat([F.relu(self.expand1x1(s)), F.relu(self.expand3x3(s))], axis=1)
        if self.identity:
            return y + x
        return y if self.bypass is None else y + self.bypass(x)


class SqueezeNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``.

    ``first``: channels and kernel of conv1; ``pools``: after conv1 and after which fires. ``small_input``: a first
    convolution of 3x3 with stride 1, for images from 15x15.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, first: tuple[int, int] = (96, 7),
        pools: tuple[int, ...] = (4, 8), bypass: str = "", small_input: bool = False, dropout: float = 0.5,
    ):  # fmt: skip
        channels, kernel = first
        conv1 = (
            nn.Conv2d(in_channels, channels, 3, padding=1)
            if small_input
            else nn.Conv2d(in_channels, channels, kernel, 2)
        )
        layers: list[nn.Module] = [conv1, nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        for number, squeeze in enumerate(SQUEEZES, 2):
            layers.append(Fire(channels, squeeze, bypass))
            channels = 8 * squeeze
            if number in pools:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(channels, num_classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return F.flatten(self.classifier(self.features(x)), 1)


RECIPE = Recipe(
    lr=0.04, epochs=68, batch_size=512, momentum=0.9, weight_decay=2e-4, schedule=Schedule("poly", power=1.0),
    augmentation=CROP, evaluation=CENTRE, init="squeezenet",
    notes="Of the authors' Caffe files, first values included: 170,000 iterations; 227x227 crops; no mirroring is listed.",
)  # fmt: skip
squeezenet = Family(
    SqueezeNet,
    PAPER,
    Domain((3, 224, 224), 1000, 21, 8),
    {"paper": RECIPE, "quick": QUICK_UNNORMALISED.but(init="quick_squeezenet")},
    init="squeezenet_torchvision",
)
bypassed = squeezenet.but(init="squeezenet")

squeezenet1_0 = squeezenet(
    "squeezenet1_0", params=1_248_424, macs=818_924_576, error=Error(42.5, 19.7), about="the paper's"
)
squeezenet1_1 = squeezenet(
    "squeezenet1_1", params=1_235_496, macs=349_151_936, error=Error(41.822, 19.376, "ImageNet val, torchvision"),
    about="a smaller first layer, earlier pooling", first=(64, 3), pools=(3, 5),
)  # fmt: skip
squeezenet_bypass = bypassed(
    "squeezenet_bypass", params=1_248_424, macs=818_924_576, error=Error(39.6, 17.5),
    about="identities around fire3, 5, 7, 9", bypass="simple",
)  # fmt: skip
squeezenet_complex_bypass = bypassed(
    "squeezenet_complex_bypass", params=1_589_672, macs=1_165_298_720, error=Error(41.2, 18.0),
    about="and 1x1 convolutions around fire2, 4, 6, 8", bypass="complex",
)  # fmt: skip
