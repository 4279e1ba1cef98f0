"""VGG: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014.

arXiv 1409.1556. Only 3x3 convolutions: two see 5x5, three see 7x7 with fewer weights and more nonlinearities. Table
1's columns A, B, D, E are VGG-11, 13, 16, 19. The ``_bn`` forms (torchvision) have batch normalisation after each
convolution, which keeps its bias.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CENTRE, QUICK, QUICK_UNNORMALISED, TORCHVISION, Recipe, Schedule, scaled
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER = Paper(
    "Very deep convolutional networks for large-scale image recognition", "Simonyan, Zisserman", 2014, "ICLR 2015",
    "1409.1556"
)  # fmt: skip
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """``(N, 3, H, W)`` from 32x32 to ``(N, num_classes)``; features are averaged to 7x7 (which at 224 they are).

    ``depths``: convolutions in each of the five blocks. ``small_input``: without the last pooling, and with features
    averaged to 1x1, for images from 16x16. ``hidden``: the width of the fully connected layers.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, depths: tuple[int, ...] = (2, 2, 3, 3, 3),
        batch_norm: bool = False, small_input: bool = False, hidden: int = 4096, dropout: float = 0.5,
    ):  # fmt: skip
        layers: list[nn.Module] = []
        channels = in_channels
        for depth, width in zip(depths, WIDTHS):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1)]
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        side = 1 if small_input else 7
        self.features = nn.Sequential(*(layers[:-1] if small_input else layers))
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Linear(512 * side * side, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        x = self.avgpool(self.features(x))
        return self.classifier(F.flatten(x, 1))


RECIPE = Recipe(
    lr=0.01, epochs=74, batch_size=256, momentum=0.9, weight_decay=5e-4,
    schedule=Schedule("plateau", gamma=0.1, drops=3),
    augmentation=scaled(256, 256), evaluation=CENTRE, init="vgg",
    notes="The paper trains VGG-11 first, from N(0, variance 0.01), and starts the deeper nets from its first four "
    "convolutions and its fully connected layers; 'vgg' is torchvision's way to train them directly. It tests on "
    "whole images.",
)  # fmt: skip
JITTERED_RECIPE = RECIPE.but(
    augmentation=scaled(256, 512),
    notes=f"{RECIPE.notes} The best results of VGG-16 and 19 have the shorter side random in 256..512; these networks were "
    "fine-tuned from those of the same configuration that were trained with it at 384.",
)
JITTERED: dict[str, Any] = {"recipes": {"paper": JITTERED_RECIPE}}
DOMAIN = Domain((3, 224, 224), 1000, 32, 16)
plain = Family(VGG, PAPER, DOMAIN, {"paper": RECIPE, "quick": QUICK_UNNORMALISED}, init="vgg")
normalised = Family(VGG, PAPER, DOMAIN, {"paper": TORCHVISION, "quick": QUICK}, init="vgg")

A = (1, 1, 2, 2, 2)
B = (2, 2, 2, 2, 2)
D = (2, 2, 3, 3, 3)
E = (2, 2, 4, 4, 4)
MACS = {A: 7_609_090_048, B: 11_308_466_176, D: 15_470_264_320, E: 19_632_062_464}

vgg11 = plain("vgg11", params=132_863_336, macs=MACS[A], error=Error(29.6, 10.4), about="configuration A", depths=A)
vgg13 = plain("vgg13", params=133_047_848, macs=MACS[B], error=Error(28.7, 9.9), about="configuration B", depths=B)
vgg16 = plain(
    "vgg16", params=138_357_544, macs=MACS[D], error=Error(25.6, 8.1), about="configuration D", depths=D, **JITTERED
)
vgg19 = plain(
    "vgg19", params=143_667_240, macs=MACS[E], error=Error(25.5, 8.0), about="configuration E", depths=E, **JITTERED
)
TORCH = "ImageNet val, torchvision"
BN: dict[str, Any] = {"about": "with batch normalisation", "batch_norm": True}
vgg11_bn = normalised("vgg11_bn", params=132_868_840, macs=MACS[A], error=Error(29.63, 10.19, TORCH), depths=A, **BN)
vgg13_bn = normalised("vgg13_bn", params=133_053_736, macs=MACS[B], error=Error(28.414, 9.626, TORCH), depths=B, **BN)
vgg16_bn = normalised("vgg16_bn", params=138_365_992, macs=MACS[D], error=Error(26.64, 8.484, TORCH), depths=D, **BN)
vgg19_bn = normalised("vgg19_bn", params=143_678_248, macs=MACS[E], error=Error(25.782, 8.158, TORCH), depths=E, **BN)
