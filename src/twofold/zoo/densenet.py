"""DenseNet: Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", arXiv 1608.06993, 2016.

Each layer reads all maps made before it in its block, and appends k more: ``x = [x, layer(x)]``. A layer is
BN-ReLU-conv 3x3, or (B) BN-ReLU-conv 1x1 to 4k, BN-ReLU-conv 3x3. Between blocks BN-ReLU-conv 1x1, keeping a part
theta of the channels (0.5: "C"), and 2x2 mean pooling.

ImageNet: 121, 161, 169, 201 layers, BC, named as torchvision names them. CIFAR: ``densenet40_k12`` (basic, first
convolution of 16 channels) and ``densenet_bc_100_12`` (BC, first convolution of 2k).

``memory_efficient=True``: the concatenations, norms and 1x1 convolutions of a layer are computed again in the backward
pass instead of being kept (Pleiss et al., arXiv 1707.06990): memory grows with the depth instead of its square.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import twofold as tw
from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CIFAR_AUGMENTED, CIFAR_PLAIN, QUICK, RESNET_TORCH, Recipe, Schedule
from twofold.zoo.registry import CIFAR10, IMAGENET, Error, Family, Paper
from twofold.zoo.resnet import conv1x1, conv3x3

PAPER = Paper(
    "Densely connected convolutional networks", "Huang, Liu, van der Maaten, Weinberger", 2016, "CVPR 2017",
    "1608.06993"
)  # fmt: skip


class DenseLayer(nn.Module):
    """``growth`` new maps from all those before: B with 1x1 and 3x3 convolutions, or a 3x3 alone."""

    def __init__(self, in_channels: int, growth: int, bottleneck: bool, dropout: float, memory_efficient: bool):
        inner = 4 * growth if bottleneck else in_channels
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, inner) if bottleneck else conv3x3(in_channels, growth)
        self.norm2 = nn.BatchNorm2d(inner) if bottleneck else None
        self.conv2 = conv3x3(inner, growth) if bottleneck else None
        self.dropout, self.memory_efficient = nn.Dropout(dropout), memory_efficient

    def squeeze(self, *maps: Any) -> Any:
        """The first half: as cheap to compute again as it is large to keep."""
        return self.conv1(F.relu(self.norm1(joined(*maps))))

    def forward(self, *maps: Any) -> Any:
        again = self.memory_efficient and self.training
        x = self.dropout((tw.checkpoint(self.squeeze) if again else self.squeeze)(*maps))
        if self.norm2 is None or self.conv2 is None:
            return x
        return self.dropout(self.conv2(F.relu(self.norm2(x))))


def joined(*maps: Any) -> Any:
    """Maps one behind the other along channels."""
    return tw.concat(maps, axis=1) if len(maps) > 1 else maps[0]


class DenseBlock(nn.Module):
    """``depth`` layers, each reading the block's input and the outputs of all before it."""

    def __init__(self, in_channels: int, depth: int, growth: int, *options: Any):
        for i in range(depth):
            setattr(self, f"denselayer{i + 1}", DenseLayer(in_channels + i * growth, growth, *options))

    def forward(self, x: Any) -> Any:
        maps, layers = [x], cast("Iterable[DenseLayer]", self.children())
        for layer in layers:
            maps.append(layer(*maps))
            if not layer.memory_efficient:  # so gradients of all later layers arrive as one sum
                maps = [tw.concat(maps, axis=1)]
        return joined(*maps)


def transition(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """BN-ReLU-conv 1x1, dropout, then the mean of each 2x2."""
    return nn.Sequential({
        "norm": nn.BatchNorm2d(in_channels), "relu": nn.ReLU(), "conv": conv1x1(in_channels, out_channels),
        "dropout": nn.Dropout(dropout), "pool": nn.AvgPool2d(2, 2),
    })  # fmt: skip


class DenseNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``.

    ``depths``: layers of each block; ``growth``: k; ``first``: channels of the stem; ``theta``: what a transition
    keeps; ``dropout``: after every convolution but the first. ``stem``: "imagenet" (7x7 with stride 2, BN-ReLU,
    pooling) or "cifar" (3x3 alone). ``small_input``: the ImageNet networks with a 3x3 stem of stride 1 and no pooling.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, depths: tuple[int, ...] = (6, 12, 24, 16),
        growth: int = 32, first: int = 64, bottleneck: bool = True, theta: float = 0.5, dropout: float = 0.0,
        stem: str = "imagenet", small_input: bool = False, memory_efficient: bool = False,
    ):  # fmt: skip
        wide = nn.Conv2d(in_channels, first, 7, 2, padding=3, bias=False)
        parts: dict[str, nn.Module] = {"conv0": conv3x3(in_channels, first) if small_input or stem == "cifar" else wide}
        if stem == "imagenet":
            parts |= {"norm0": nn.BatchNorm2d(first), "relu0": nn.ReLU()}
            parts |= {} if small_input else {"pool0": nn.MaxPool2d(3, 2, padding=1)}
        channels = first
        for i, depth in enumerate(depths, 1):
            parts[f"denseblock{i}"] = DenseBlock(channels, depth, growth, bottleneck, dropout, memory_efficient)
            channels += depth * growth
            if i < len(depths):
                parts[f"transition{i}"] = transition(channels, int(theta * channels), dropout)
                channels = int(theta * channels)
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Any) -> Any:
        return self.classifier(F.relu(self.features(x)).mean(axis=(2, 3)))


CIFAR_RECIPE = Recipe(
    lr=0.1, epochs=300, batch_size=64, momentum=0.9, nesterov=True, weight_decay=1e-4,
    schedule=Schedule("multistep", milestones=(150, 225)), augmentation=CIFAR_AUGMENTED, evaluation=CIFAR_PLAIN,
    init="he_fan_out",
    notes="Without augmentation, dropout 0.2 after every convolution but the first: option dropout=0.2.",
)  # fmt: skip
imagenet = Family(DenseNet, PAPER, IMAGENET, {"paper": RESNET_TORCH, "quick": QUICK}, init="he_fan_in")
# 161: what fits the authors' GPUs, and longer for it
LARGEST = RESNET_TORCH.but(batch_size=128, epochs=100, schedule=Schedule("multistep", milestones=(30, 60, 90)))
cifar = Family(DenseNet, PAPER, CIFAR10, {"paper": CIFAR_RECIPE, "quick": QUICK.but(lr=0.1)}, init="he_fan_out")

densenet121 = imagenet(
    "densenet121", params=7_978_856, macs=2_834_161_664, error=Error(25.02, 7.71), depths=(6, 12, 24, 16)
)
densenet161 = imagenet(
    "densenet161", params=28_681_000, macs=7_727_907_072, error=Error(22.33, 6.15), about="k=48",
    recipes={"paper": LARGEST}, depths=(6, 12, 36, 24), growth=48, first=96,
)  # fmt: skip
densenet169 = imagenet(
    "densenet169", params=14_149_480, macs=3_359_843_328, error=Error(23.80, 6.85), depths=(6, 12, 32, 32)
)
densenet201 = imagenet(
    "densenet201", params=20_013_928, macs=4_291_365_888, error=Error(22.58, 6.34), depths=(6, 12, 48, 32)
)
densenet40_k12 = cifar(
    "densenet40_k12", params=1_019_722, macs=264_812_928, error=Error(5.24, None, "CIFAR-10+ test"),
    depths=(12, 12, 12), growth=12, first=16, bottleneck=False, theta=1.0, stem="cifar",
)  # fmt: skip
densenet_bc_100_12 = cifar(
    "densenet_bc_100_12", params=769_162, macs=287_929_692, error=Error(4.51, None, "CIFAR-10+ test"),
    depths=(16, 16, 16), growth=12, first=24, stem="cifar",
)  # fmt: skip
