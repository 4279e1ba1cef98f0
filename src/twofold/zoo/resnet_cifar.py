"""ResNets for CIFAR: He et al., arXiv 1512.03385, section 4.2; and their plain twins.

conv 3x3 16, three stages of n blocks with 16, 32, 64 channels at 32x32, 16x16, 8x8, the mean, a linear layer: 6n+2
layers. Shortcuts are option A, without parameters, so that a plain network has exactly as many as its residual twin.
With ``shortcut="B"`` each has 2,752 more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CIFAR_AUGMENTED, CIFAR_PLAIN, QUICK, Recipe, Schedule
from twofold.zoo.registry import CIFAR10, Error, Family
from twofold.zoo.resnet import PAPER, BasicBlock, Residual, conv3x3, stage


class CifarResNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``. ``depth``: 6n+2; ``shortcut``: "A", "A-average", "B", None (plain)."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, depth: int = 20, shortcut: str | None = "A",
        block: type[Residual] = BasicBlock,
    ):  # fmt: skip
        n = (depth - 2) // 6
        self.conv1, self.bn1 = conv3x3(in_channels, 16), nn.BatchNorm2d(16)
        self.layer1 = stage(block, 16, 16, n, 1, shortcut=shortcut)
        self.layer2 = stage(block, 16, 32, n, 2, shortcut=shortcut)
        self.layer3 = stage(block, 32, 64, n, 2, shortcut=shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.flatten(self.avgpool(x), 1))


# 64,000 iterations of 128 images, /10 after 32,000 and 48,000: 164 epochs of 50,000 images, /10 after 82 and 123
RECIPE = Recipe(
    lr=0.1, epochs=164, batch_size=128, momentum=0.9, weight_decay=1e-4, decay="weights",
    schedule=Schedule("multistep", milestones=(81.9, 122.9)), augmentation=CIFAR_AUGMENTED, evaluation=CIFAR_PLAIN,
    init="he_fan_in",
    notes="The paper trains on 45,000 images and validates on 5,000, and subtracts the mean of each pixel.",
)  # fmt: skip
# ResNet-110 and 1202: 0.01 until the training error is below 80 %, about 400 iterations
WARM = RECIPE.but(schedule=replace(RECIPE.schedule, warmup=1.0, warmup_lr=0.01))
QUICK_CIFAR = QUICK.but(lr=0.1)
# A hundred layers and more: an epoch at 0.01, then 0.04 (at 0.1 the loss of stochastic depth grows even so)
QUICK_WARMED = QUICK_CIFAR.but(lr=0.04, schedule=replace(QUICK.schedule, warmup=1.0, warmup_lr=0.01))
cifar = Family(CifarResNet, PAPER, CIFAR10, {"paper": RECIPE, "quick": QUICK_CIFAR}, init="he_fan_in")
warmed = cifar.but(recipes={"paper": WARM, "quick": QUICK_WARMED})


def on(top1: float) -> Error:
    return Error(top1, None, "CIFAR-10+ test")


resnet20_cifar = cifar("resnet20_cifar", params=269_722, macs=40_551_040, error=on(8.75), depth=20)
resnet32_cifar = cifar("resnet32_cifar", params=464_154, macs=68_862_592, error=on(7.51), depth=32)
resnet44_cifar = cifar("resnet44_cifar", params=658_586, macs=97_174_144, error=on(7.17), depth=44)
resnet56_cifar = cifar("resnet56_cifar", params=853_018, macs=125_485_696, error=on(6.97), depth=56)
resnet110_cifar = warmed("resnet110_cifar", params=1_727_962, macs=252_887_680, error=on(6.43), depth=110)
resnet1202_cifar = warmed("resnet1202_cifar", params=19_421_274, macs=2_829_238_912, error=on(7.93), depth=1202)
ABOUT = "the same layers without shortcuts"
plain20_cifar = cifar("plain20_cifar", params=269_722, macs=40_551_040, about=ABOUT, depth=20, shortcut=None)
plain56_cifar = cifar("plain56_cifar", params=853_018, macs=125_485_696, about=ABOUT, depth=56, shortcut=None)
