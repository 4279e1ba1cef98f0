"""ZFNet: Zeiler and Fergus, "Visualizing and understanding convolutional networks", arXiv 1311.2901, 2013.

AlexNet after looking at its filters: the first layer is 7x7 with stride 2 instead of 11x11 with stride 4, and the
second 5x5 with stride 2; no groups. ``zfnet`` is the paper's figure 3. ``zfnet_cs231n`` has 512, 1024 and 512
filters in conv3-5, as CS231n's slide and the paper's table 2 (b).

The paper's map sizes (110, 55, 26, 13, 13, 13, 6) come out with a padding of 1 before conv1 and poolings 1 and 2
rounded up. It gives no constants for contrast normalisation, which follows the poolings: AlexNet's are used.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.alexnet import classifier, paper_norm
from twofold.zoo.recipes import CENTRE, CROP_FLIPPED, QUICK_UNNORMALISED, Recipe, Schedule
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER = Paper("Visualizing and understanding convolutional networks", "Zeiler, Fergus", 2013, "ECCV 2014", "1311.2901")


class ZFNet(nn.Module):
    """``(N, 3, 224, 224)`` to ``(N, num_classes)``; other sizes are averaged to 6x6 before fc6.

    ``widths``: the filters of conv3, conv4, conv5. ``small_input``: 3x3 and 5x5 first convolutions with stride 1, and
    2x2 features, for images from 12x12. ``hidden``: the width of fc6 and fc7.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, widths: tuple[int, int, int] = (384, 384, 256),
        small_input: bool = False, hidden: int = 4096,
    ):  # fmt: skip
        a, b, c = widths
        conv1 = nn.Conv2d(in_channels, 96, 3, 1, 1) if small_input else nn.Conv2d(in_channels, 96, 7, 2, 1)
        conv2 = nn.Conv2d(96, 256, 5, 1, 2) if small_input else nn.Conv2d(96, 256, 5, 2)
        self.features = nn.Sequential({
            "conv1": conv1, "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(3, 2, ceil_mode=True), "norm1": paper_norm(),
            "conv2": conv2, "relu2": nn.ReLU(), "pool2": nn.MaxPool2d(3, 2, ceil_mode=True), "norm2": paper_norm(),
            "conv3": nn.Conv2d(256, a, 3, padding=1), "relu3": nn.ReLU(),
            "conv4": nn.Conv2d(a, b, 3, padding=1), "relu4": nn.ReLU(),
            "conv5": nn.Conv2d(b, c, 3, padding=1), "relu5": nn.ReLU(), "pool5": nn.MaxPool2d(3, 2),
        })  # fmt: skip
        side = 2 if small_input else 6
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(classifier(c * side * side, hidden, num_classes))

    def forward(self, x: Any) -> Any:
        x = self.avgpool(self.features(x))
        return self.classifier(F.flatten(x, 1))


RECIPE = Recipe(
    lr=0.01, epochs=70, batch_size=128, momentum=0.9, schedule=Schedule("plateau", gamma=0.1), augmentation=CROP_FLIPPED,
    evaluation=CENTRE, init="gaussian_0.01",
    notes="The rate was annealed by hand; first-layer filters whose root mean square passed 0.1 were scaled back to "
    "it; the mean image was subtracted; crops were ten fixed ones (corners, centre, mirrors). No weight decay is stated.",
)  # fmt: skip
variant = Family(
    ZFNet,
    PAPER,
    Domain((3, 224, 224), 1000, 63, 12),
    {"paper": RECIPE, "quick": QUICK_UNNORMALISED},
    init="gaussian_0.01",
)

zfnet = variant(
    "zfnet", params=62_357_608, macs=1_168_032_896, error=Error(38.4, 16.5), about="the paper's figure 3",
    widths=(384, 384, 256),
)  # fmt: skip
zfnet_cs231n = variant(
    "zfnet_cs231n", params=107_627_624, macs=2_476_704_896, error=Error(37.5, 16.0),
    about="512, 1024, 512 filters in conv3-5", widths=(512, 1024, 512),
)  # fmt: skip
