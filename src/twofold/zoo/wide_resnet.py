"""Wide ResNets: Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146, 2016.

Fewer layers, more channels. ``wrn_d_k``: d = 6n+4 layers for CIFAR, pre-activation basic blocks of 16k, 32k, 64k
channels. ``wide_resnet50_2``, ``wide_resnet101_2`` (the latter torchvision's): ResNet's bottlenecks with twice the
inner channels and the same outputs.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.preact_resnet import PreActBasic, stages
from twofold.zoo.recipes import CIFAR_PLAIN, CIFAR_REFLECTED, QUICK, RESNET_TORCH, TORCHVISION, Recipe, Schedule
from twofold.zoo.registry import CIFAR10, Error, Family, Paper
from twofold.zoo.resnet import DOMAIN, Bottleneck, ResNet, conv3x3

PAPER = Paper("Wide residual networks", "Zagoruyko, Komodakis", 2016, "BMVC 2016", "1605.07146")


class WideResNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``. ``dropout``: between a block's two convolutions (0.3 on CIFAR)."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, depth: int = 28, width: int = 10, dropout: float = 0.0
    ):
        n, channels = (depth - 4) // 6, 64 * width
        self.conv1 = conv3x3(in_channels, 16)
        made = stages(PreActBasic, 16, (16 * width, 32 * width, 64 * width), (n, n, n), dropout=dropout)
        self.layer1, self.layer2, self.layer3 = made
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean(axis=(2, 3)))


RECIPE = Recipe(
    lr=0.1, epochs=200, batch_size=128, momentum=0.9, nesterov=True, weight_decay=5e-4,
    schedule=Schedule("multistep", milestones=(60, 120, 160), gamma=0.2), augmentation=CIFAR_REFLECTED,
    evaluation=CIFAR_PLAIN,
    init="he_fan_out",
)  # fmt: skip
wrn = Family(WideResNet, PAPER, CIFAR10, {"paper": RECIPE, "quick": QUICK}, init="he_fan_out")
wide = Family(ResNet, PAPER, DOMAIN, {"paper": RESNET_TORCH, "quick": QUICK}, init="he_torchvision")
TWICE: dict[str, Any] = {"block": Bottleneck, "base_width": 128}


def on(top1: float) -> Error:
    return Error(top1, None, "CIFAR-10+ test")


wrn_16_8 = wrn("wrn_16_8", params=10_961_370, macs=1_548_145_664, error=on(4.27), depth=16, width=8)
wrn_28_10 = wrn("wrn_28_10", params=36_479_194, macs=5_243_328_768, error=on(4.00), depth=28, width=10)
wrn_40_4 = wrn("wrn_40_4", params=8_949_210, macs=1_298_582_016, error=on(4.53), depth=40, width=4)
wide_resnet50_2 = wide(
    "wide_resnet50_2", params=68_883_240, macs=11_398_021_120, error=Error(21.9, 6.03), depths=(3, 4, 6, 3), **TWICE
)
wide_resnet101_2 = wide(
    "wide_resnet101_2", params=126_886_696, macs=22_753_050_624,
    error=Error(21.152, 5.716, "ImageNet val, torchvision"), about="torchvision's; not in the paper",
    recipes={"paper": TORCHVISION}, depths=(3, 4, 23, 3), **TWICE,
)  # fmt: skip
