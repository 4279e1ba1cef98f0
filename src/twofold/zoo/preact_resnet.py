"""Pre-activation ResNets: He, Zhang, Ren, Sun, "Identity mappings in deep residual networks", arXiv 1603.05027, 2016.

Batch norm and ReLU come before each convolution, and nothing after the addition: the identity path is clean from the
first block to the last, and networks of 1001 layers train. Where a block changes the shape, branch and shortcut share
one BN-ReLU, and the shortcut's 1x1 convolution has no batch norm. The first block of all is activated before it splits.

CIFAR: 6n+2 layers of basic blocks with option A shortcuts (20 to 110), 9n+2 of bottlenecks (164, 1001). ImageNet:
ResNet's stages, with the stem's BN-ReLU in place of the first block's. The paper trains 110, 164 and 1001 on CIFAR, 152 and
200 on ImageNet; the others are the same rules at ResNet's other depths.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import QUICK, Schedule
from twofold.zoo.registry import CIFAR10, Error, Family, Paper
from twofold.zoo.resnet import DOMAIN, conv1x1, conv3x3
from twofold.zoo.resnet import RECIPE as RESNET_RECIPE
from twofold.zoo.resnet_cifar import WARM
from twofold.zoo.shortcuts import PaddedShortcut

PAPER = Paper("Identity mappings in deep residual networks", "He, Zhang, Ren, Sun", 2016, "ECCV 2016", "1603.05027")


class PreActivation(nn.Module):
    """``skip + branch(a)`` with ``a = relu(bn1(x))``.

    The skip takes ``a`` where the shape changes (or in the ``first`` block), else ``x``. ``projection``: "conv", a 1x1
    convolution, or "pad", option A. ``active``: x has been through BN-ReLU already.
    """

    expansion: int

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, first: bool, projection: str, active: bool = False
    ):
        self.bn1 = None if active else nn.BatchNorm2d(in_channels)
        changes = in_channels != out_channels or stride != 1
        self.shares = first or changes
        shortcut = PaddedShortcut if projection == "pad" else conv1x1
        self.shortcut = shortcut(in_channels, out_channels, stride) if changes else None

    def branch(self, a: Any) -> Any:
        """What the block adds."""
        raise NotImplementedError

    def forward(self, x: Any) -> Any:
        a = x if self.bn1 is None else F.relu(self.bn1(x))
        skip = a if self.shares else x
        return self.branch(a) + (skip if self.shortcut is None else self.shortcut(skip))


class PreActBasic(PreActivation):
    """3x3, BN-ReLU (and dropout), 3x3."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, first: bool = False, projection: str = "conv",
        active: bool = False, dropout: float = 0.0, **_: Any,
    ):  # fmt: skip
        super().__init__(in_channels, width, stride, first, projection, active)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(width, width)

    def branch(self, a: Any) -> Any:
        return self.conv2(self.dropout(F.relu(self.bn2(self.conv1(a)))))


class PreActBottleneck(PreActivation):
    """1x1, BN-ReLU, 3x3, BN-ReLU, 1x1 to four times the width; stride in the 1x1 (``stride_first``) or the 3x3."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, first: bool = False, projection: str = "conv",
        active: bool = False, stride_first: bool = True, **_: Any,
    ):  # fmt: skip
        super().__init__(in_channels, 4 * width, stride, first, projection, active)
        self.conv1 = conv1x1(in_channels, width, stride if stride_first else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1 if stride_first else stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, 4 * width)

    def branch(self, a: Any) -> Any:
        a = F.relu(self.bn2(self.conv1(a)))
        return self.conv3(F.relu(self.bn3(self.conv2(a))))


def stages(
    block: type[Any],
    channels: int,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    active: bool = False,
    **options: Any,
) -> list[nn.Module]:
    """Stages of blocks, the first with stride 1, the others 2; ``active``: the first block gets activated input."""
    out: list[nn.Module] = []
    for i, (width, depth) in enumerate(zip(widths, depths)):
        blocks = []
        for j in range(depth):
            first = i == j == 0
            blocks.append(block(channels, width, 2 if i and not j else 1, first, active=first and active, **options))
            channels = width * block.expansion
        out.append(nn.Sequential(*blocks))
    return out


class CifarPreActResNet(nn.Module):
    """For 32x32 images: conv 3x3 16, stages of 16, 32, 64 (times the expansion) channels, BN-ReLU, mean, linear."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, depth: int = 110, block: type[PreActivation] = PreActBasic,
        projection: str = "pad",
    ):  # fmt: skip
        n = (depth - 2) // (9 if block is PreActBottleneck else 6)
        self.conv1 = conv3x3(in_channels, 16)
        self.layer1, self.layer2, self.layer3 = stages(block, 16, (16, 32, 64), (n, n, n), projection=projection)
        self.bn = nn.BatchNorm2d(64 * block.expansion)
        self.fc = nn.Linear(64 * block.expansion, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean(axis=(2, 3)))


class PreActResNet(nn.Module):
    """For ImageNet: ResNet's stem and stages, BN-ReLU at the end. ``small_input``: a 3x3 stem without pooling."""

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, block: type[PreActivation] = PreActBasic,
        depths: tuple[int, ...] = (2, 2, 2, 2), small_input: bool = False,
    ):  # fmt: skip
        self.conv1 = (
            conv3x3(in_channels, 64) if small_input else nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        made = stages(block, 64, (64, 128, 256, 512), depths, active=True, stride_first=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = made
        self.bn = nn.BatchNorm2d(512 * block.expansion)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.relu(self.bn(x)).mean(axis=(2, 3)))


cifar = Family(CifarPreActResNet, PAPER, CIFAR10, {"paper": WARM, "quick": QUICK.but(lr=0.1)}, init="he_fan_out")
# The appendix: divided by 10 at 30 and 60 epochs, the rest as for ResNet
IMAGENET_RECIPE = RESNET_RECIPE.but(
    epochs=90, schedule=Schedule("multistep", milestones=(30, 60)), init="he_fan_out",
    notes="The mean of each pixel is subtracted.",
)  # fmt: skip
imagenet = Family(PreActResNet, PAPER, DOMAIN, {"paper": IMAGENET_RECIPE, "quick": QUICK}, init="he_fan_out")
DEEP: dict[str, Any] = {"block": PreActBottleneck, "projection": "conv"}


def on(top1: float) -> Error:
    return Error(top1, None, "CIFAR-10+ test")


preact_resnet20_cifar = cifar("preact_resnet20_cifar", params=269_722, macs=40_551_040, depth=20)
preact_resnet32_cifar = cifar("preact_resnet32_cifar", params=464_154, macs=68_862_592, depth=32)
preact_resnet44_cifar = cifar("preact_resnet44_cifar", params=658_586, macs=97_174_144, depth=44)
preact_resnet56_cifar = cifar("preact_resnet56_cifar", params=853_018, macs=125_485_696, depth=56)
preact_resnet110_cifar = cifar("preact_resnet110_cifar", params=1_727_962, macs=252_887_680, error=on(6.37), depth=110)
preact_resnet164_cifar = cifar(
    "preact_resnet164_cifar", params=1_703_258, macs=244_500_992, error=on(5.46), depth=164, **DEEP
)
preact_resnet1001_cifar = cifar(
    "preact_resnet1001_cifar", params=10_327_706, macs=1_487_849_984, error=on(4.92), depth=1001, **DEEP
)
preact_resnet18 = imagenet(
    "preact_resnet18", params=11_687_720, macs=1_814_073_344, block=PreActBasic, depths=(2, 2, 2, 2)
)
preact_resnet34 = imagenet(
    "preact_resnet34", params=21_795_880, macs=3_663_761_408, block=PreActBasic, depths=(3, 4, 6, 3)
)
preact_resnet50 = imagenet(
    "preact_resnet50", params=25_549_352, macs=4_089_184_256, block=PreActBottleneck, depths=(3, 4, 6, 3)
)
preact_resnet101 = imagenet(
    "preact_resnet101", params=44_541_480, macs=7_801_405_440, block=PreActBottleneck, depths=(3, 4, 23, 3)
)
preact_resnet152 = imagenet(
    "preact_resnet152", params=60_185_128, macs=11_513_626_624, block=PreActBottleneck, depths=(3, 8, 36, 3)
)
preact_resnet200 = imagenet(
    "preact_resnet200", params=64_666_152, macs=15_007_481_856, error=Error(21.66, 5.79, "ImageNet val"),
    block=PreActBottleneck, depths=(3, 24, 36, 3),
)  # fmt: skip
