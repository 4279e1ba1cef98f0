"""ResNet: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", arXiv 1512.03385, 2015.

A block computes ``relu(x + f(x))``: where a deeper network has nothing to add, f can be zero. Blocks are two 3x3
convolutions (18, 34 layers) or 1x1, 3x3, 1x1 (50, 101, 152). ``plain18`` and ``plain34`` are the paper's twins without
shortcuts, which train worse the deeper they are.

The stride of a bottleneck is in its 3x3 convolution, as in torchvision (called v1.5); the paper has it in the first
1x1: option ``stride_first=True``. The parameters are the same, the function is not, and ResNet-50 then takes
3,857,973,248 multiply-adds. Names of parameters are torchvision's. Wide ResNet and ResNeXt are made of the same
class.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CENTRE, QUICK, Recipe, Schedule, scaled
from twofold.zoo.registry import Domain, Error, Family, Paper
from twofold.zoo.shortcuts import shortcut as make_shortcut

PAPER = Paper("Deep residual learning for image recognition", "He, Zhang, Ren, Sun", 2015, "CVPR 2016", "1512.03385")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class Residual(nn.Module):
    """``relu(skip(x) + branch(x))``; without ``shortcut`` (None), a plain block: ``relu(branch(x))``."""

    expansion: int

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str | None):
        self.residual = shortcut is not None
        if shortcut is not None:
            self.downsample = make_shortcut(shortcut, in_channels, width * self.expansion, stride)

    def branch(self, x: Any) -> Any:
        """f(x), before the addition."""
        raise NotImplementedError

    def last_norm(self) -> Any:
        """The batch norm at the end of the branch."""
        raise NotImplementedError

    def skip(self, x: Any) -> Any:
        """What f(x) is added to."""
        return x if self.downsample is None else self.downsample(x)

    def forward(self, x: Any) -> Any:
        return F.relu(self.branch(x) + self.skip(x) if self.residual else self.branch(x))


class BasicBlock(Residual):
    """3x3, 3x3."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, shortcut: str | None = "B", **_: Any):
        self.conv1, self.bn1 = conv3x3(in_channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        super().__init__(in_channels, width, stride, shortcut)

    def branch(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def last_norm(self) -> Any:
        return self.bn2


class Bottleneck(Residual):
    """1x1 to ``inner`` channels, 3x3 (in ``groups``), 1x1 to four times ``width``."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, shortcut: str | None = "B", groups: int = 1,
        base_width: int = 64, stride_first: bool = False,
    ):  # fmt: skip
        inner, out = width * base_width // 64 * groups, width * self.expansion
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1, self.bn1 = conv1x1(in_channels, inner, first), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv3x3(inner, inner, second, groups), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv1x1(inner, out), nn.BatchNorm2d(out)
        super().__init__(in_channels, width, stride, shortcut)

    def branch(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    def last_norm(self) -> Any:
        return self.bn3


def stage(
    block: type[Residual], in_channels: int, width: int, depth: int, stride: int, **options: Any
) -> nn.Sequential:
    """``depth`` blocks, of which the first has the stride."""
    out = width * block.expansion
    return nn.Sequential(
        *(block(out if i else in_channels, width, 1 if i else stride, **options) for i in range(depth))
    )


class ResNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``: a stem to 1/4, four stages of 64, 128, 256, 512 (times the expansion)
    channels at 1/4, 1/8, 1/16, 1/32, the mean, a linear layer.

    ``block``, ``depths``: the rows below. ``groups``, ``base_width``: ResNeXt's and Wide ResNet's inner channels.
    ``shortcut``: "A", "B", "C" of the paper, or None for a plain network. ``stride_first``: see the module.
    ``zero_init_residual``: blocks start as identities (arXiv 1706.02677). ``small_input``: the stem is one 3x3
    convolution of stride 1, without pooling, for images of about 32x32.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, block: type[Residual] = BasicBlock,
        depths: tuple[int, ...] = (2, 2, 2, 2), groups: int = 1, base_width: int = 64, shortcut: str | None = "B",
        stride_first: bool = False, zero_init_residual: bool = False, small_input: bool = False,
    ):  # fmt: skip
        inner = {"groups": groups, "base_width": base_width, "stride_first": stride_first}
        self.conv1 = (
            conv3x3(in_channels, 64) if small_input else nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for i, (width, depth) in enumerate(zip((64, 128, 256, 512), depths)):
            blocks = stage(block, channels, width, depth, 2 if i else 1, shortcut=shortcut, **inner)
            setattr(self, f"layer{i + 1}", blocks)
            channels = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        if zero_init_residual:
            for part in self.modules():
                if isinstance(part, Residual):
                    nn.init.zeros_(part.last_norm().weight)

    def forward(self, x: Any) -> Any:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.flatten(self.avgpool(x), 1))


RECIPE = Recipe(
    lr=0.1, epochs=120, batch_size=256, momentum=0.9, weight_decay=1e-4, decay="weights",
    schedule=Schedule("plateau", gamma=0.1), init="he_fan_in",
    augmentation=scaled(256, 480), evaluation=CENTRE,
    notes="The mean of each pixel is subtracted; up to 600,000 iterations. CS231n's slide prints a decay of 1e-5; the "
    "paper says 1e-4.",
)  # fmt: skip
DOMAIN = Domain((3, 224, 224), 1000, 32, 8)
resnet = Family(ResNet, PAPER, DOMAIN, {"paper": RECIPE, "quick": QUICK}, init="he_torchvision")
CROPS = "ImageNet val, 10 crops"
PLAIN: dict[str, Any] = {"about": "the same layers without shortcuts", "shortcut": None}

resnet18 = resnet(
    "resnet18", params=11_689_512, macs=1_814_073_344, error=Error(27.88, None, f"{CROPS}, option A"),
    block=BasicBlock, depths=(2, 2, 2, 2),
)  # fmt: skip
resnet34 = resnet(
    "resnet34", params=21_797_672, macs=3_663_761_408, error=Error(24.52, 7.46, CROPS), block=BasicBlock,
    depths=(3, 4, 6, 3),
)  # fmt: skip
resnet50 = resnet(
    "resnet50", params=25_557_032, macs=4_089_184_256, error=Error(22.85, 6.71, CROPS), block=Bottleneck,
    depths=(3, 4, 6, 3),
)  # fmt: skip
resnet101 = resnet(
    "resnet101", params=44_549_160, macs=7_801_405_440, error=Error(21.75, 6.05, CROPS), block=Bottleneck,
    depths=(3, 4, 23, 3),
)  # fmt: skip
resnet152 = resnet(
    "resnet152", params=60_192_808, macs=11_513_626_624, error=Error(21.43, 5.71, CROPS), block=Bottleneck,
    depths=(3, 8, 36, 3),
)  # fmt: skip
plain18 = resnet(
    "plain18", params=11_515_688, macs=1_794_805_760, error=Error(27.94, None, CROPS), block=BasicBlock,
    depths=(2, 2, 2, 2), **PLAIN,
)  # fmt: skip
plain34 = resnet(
    "plain34", params=21_623_848, macs=3_644_493_824, error=Error(28.54, 10.02, CROPS), block=BasicBlock,
    depths=(3, 4, 6, 3), **PLAIN,
)  # fmt: skip
