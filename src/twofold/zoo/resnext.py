"""ResNeXt: Xie, Girshick, Dollar, Tu, He, "Aggregated residual transformations for deep neural networks", 2016.

arXiv 1611.05431. A bottleneck whose 3x3 convolution has groups: many narrow paths in parallel instead of one wide.
"32x4d" is 32 groups of 4 channels in the first stage. The ImageNet networks are ResNet's with other bottlenecks;
101 32x8d is torchvision's, 101 64x4d also the paper's.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CIFAR_AUGMENTED, CIFAR_PLAIN, QUICK, RESNET_TORCH, TORCHVISION, Recipe, Schedule
from twofold.zoo.registry import CIFAR10, Error, Family, Paper
from twofold.zoo.resnet import DOMAIN, Bottleneck, ResNet, conv3x3, stage

PAPER = Paper(
    "Aggregated residual transformations for deep neural networks", "Xie, Girshick, Dollar, Tu, He", 2016, "CVPR 2017",
    "1611.05431"
)  # fmt: skip


class CifarResNeXt(nn.Module):
    """29 layers for 32x32 images: conv 3x3 64, three stages of three bottlenecks to 256, 512, 1024 channels.

    ``groups`` x ``base_width`` d: the cardinality and the channels of each group in the first stage.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, groups: int = 8, base_width: int = 64):
        inner: dict[str, Any] = {"groups": groups, "base_width": base_width}
        self.conv1, self.bn1 = conv3x3(in_channels, 64), nn.BatchNorm2d(64)
        self.layer1 = stage(Bottleneck, 64, 64, 3, 1, **inner)
        self.layer2 = stage(Bottleneck, 256, 128, 3, 2, **inner)
        self.layer3 = stage(Bottleneck, 512, 256, 3, 2, **inner)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean(axis=(2, 3)))


CIFAR_RECIPE = Recipe(
    lr=0.1, epochs=300, batch_size=128, momentum=0.9, nesterov=True, weight_decay=5e-4,
    schedule=Schedule("multistep", milestones=(150, 225)), augmentation=CIFAR_AUGMENTED, evaluation=CIFAR_PLAIN,
    init="he_fan_out",
)  # fmt: skip
resnext = Family(ResNet, PAPER, DOMAIN, {"paper": RESNET_TORCH, "quick": QUICK}, init="he_torchvision")

resnext29_8x64d = Family(CifarResNeXt, PAPER, CIFAR10, {"paper": CIFAR_RECIPE, "quick": QUICK}, init="he_fan_out")(
    "resnext29_8x64d",
    params=34_426_698,
    macs=5_387_266_048,
    error=Error(3.65, None, "CIFAR-10+ test"),
    groups=8,
    base_width=64,
)
resnext50_32x4d = resnext(
    "resnext50_32x4d", params=25_028_904, macs=4_230_479_872, error=Error(22.2, None), block=Bottleneck,
    depths=(3, 4, 6, 3), groups=32, base_width=4,
)  # fmt: skip
resnext101_32x8d = resnext(
    "resnext101_32x8d", params=88_791_336, macs=16_414_015_488, error=Error(20.688, 5.474, "ImageNet val, torchvision"),
    about="torchvision's; the paper has 32x4d and 64x4d", recipes={"paper": TORCHVISION.but(epochs=100)},
    block=Bottleneck, depths=(3, 4, 23, 3), groups=32, base_width=8,
)  # fmt: skip
resnext101_64x4d = resnext(
    "resnext101_64x4d", params=83_455_272, macs=15_460_270_080, error=Error(20.4, 5.3), block=Bottleneck,
    depths=(3, 4, 23, 3), groups=64, base_width=4,
)  # fmt: skip
