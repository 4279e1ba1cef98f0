"""AlexNet: Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", 2012.

``alexnet_2012`` is the paper's network: two groups in conv2, conv4 and conv5 (each half on its own GPU), local response
normalisation before pooling, 227x227 images (the paper prints 224, which gives no whole number of positions).
``alexnet`` is torchvision's: the single column of Krizhevsky, "One weird trick for parallelizing convolutional neural
networks" (arXiv 1404.5997), no groups, no normalisation, 224x224.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CENTRE, CROP_ALEXNET, QUICK_UNNORMALISED, TORCHVISION, Recipe, Schedule
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER_2012 = Paper(
    "ImageNet classification with deep convolutional neural networks", "Krizhevsky, Sutskever, Hinton", 2012, "NIPS"
)  # fmt: skip
PAPER_2014 = Paper(
    "One weird trick for parallelizing convolutional neural networks", "Krizhevsky", 2014, arxiv="1404.5997"
)


def classifier(features: int, hidden: int, num_classes: int) -> dict[str, nn.Module]:
    """fc6, fc7, fc8 with dropout after the first two, as the papers of 2012 to 2014 have them."""
    return {
        "fc6": nn.Linear(features, hidden), "relu6": nn.ReLU(), "drop6": nn.Dropout(0.5),
        "fc7": nn.Linear(hidden, hidden), "relu7": nn.ReLU(), "drop7": nn.Dropout(0.5),
        "fc8": nn.Linear(hidden, num_classes),
    }  # fmt: skip


class AlexNet(nn.Module):
    """torchvision's AlexNet. ``(N, 3, H, W)`` from 63x63 to ``(N, num_classes)``.

    ``small_input``: the first convolution is 3x3 with stride 1, and the features are averaged to 2x2 instead of
    6x6, for images from 15x15. ``hidden``: the width of the two fully connected layers.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, small_input: bool = False, hidden: int = 4096,
        dropout: float = 0.5,
    ):  # fmt: skip
        first = (
            nn.Conv2d(in_channels, 64, 3, padding=1) if small_input else nn.Conv2d(in_channels, 64, 11, 4, padding=2)
        )
        side = 2 if small_input else 6
        self.features = nn.Sequential(
            first, nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(256 * side * side, hidden), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        x = self.avgpool(self.features(x))
        return self.classifier(F.flatten(x, 1))


def paper_norm() -> nn.Module:
    """Section 3.3: k=2, n=5, alpha=1e-4, beta=0.75. The layer divides alpha by n; the paper does not."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


class AlexNet2012(nn.Module):
    """The paper's network. ``(N, 3, 227, 227)`` to ``(N, num_classes)``; other sizes are averaged to 6x6 before fc6.

    ``groups``: 2, or 1 for the common rewriting for one GPU (62,378,344 parameters). ``pool_first``: pooling before
    normalisation, as in CaffeNet and on CS231n's slides; the paper normalises first. ``small_input`` and ``hidden``: as
    ``AlexNet``.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, small_input: bool = False, hidden: int = 4096,
        groups: int = 2, pool_first: bool = False,
    ):  # fmt: skip
        conv1 = nn.Conv2d(in_channels, 96, 3, padding=1) if small_input else nn.Conv2d(in_channels, 96, 11, 4)

        def ending(i: int) -> dict[str, nn.Module]:
            norm, pool = (f"norm{i}", paper_norm()), (f"pool{i}", nn.MaxPool2d(3, 2))
            return dict([pool, norm] if pool_first else [norm, pool])

        self.features = nn.Sequential({
            "conv1": conv1, "relu1": nn.ReLU(), **ending(1),
            "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=groups), "relu2": nn.ReLU(), **ending(2),
            "conv3": nn.Conv2d(256, 384, 3, padding=1), "relu3": nn.ReLU(),
            "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=groups), "relu4": nn.ReLU(),
            "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=groups), "relu5": nn.ReLU(), "pool5": nn.MaxPool2d(3, 2),
        })  # fmt: skip
        side = 2 if small_input else 6
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(classifier(256 * side * side, hidden, num_classes))

    def forward(self, x: Any) -> Any:
        x = self.avgpool(self.features(x))
        return self.classifier(F.flatten(x, 1))


PAPER_RECIPE = Recipe(
    lr=0.01, epochs=90, batch_size=128, momentum=0.9, weight_decay=5e-4,
    schedule=Schedule("plateau", gamma=0.1, drops=3),
    augmentation=CROP_ALEXNET, evaluation=CENTRE, init="alexnet_2012",
    notes="The rate was divided by hand, three times, when the validation error stopped improving; the training set's "
    "mean image was subtracted; ten crops at test time.",
)  # fmt: skip
DOMAIN = Domain((3, 227, 227), 1000, 67, 15)

alexnet_2012 = Family(
    AlexNet2012, PAPER_2012, DOMAIN, {"paper": PAPER_RECIPE, "quick": QUICK_UNNORMALISED}, init="alexnet_2012"
)(
    "alexnet_2012", params=60_965_224, macs=724_406_816, error=Error(40.7, 18.2, "ImageNet val, 10 crops"),
    about="the paper's: two groups, local response normalisation",
)  # fmt: skip
alexnet = Family(
    AlexNet, PAPER_2014, Domain((3, 224, 224), 1000, 63, 15),
    {"paper": TORCHVISION.but(lr=0.01), "quick": QUICK_UNNORMALISED},
)(
    "alexnet", params=61_100_840, macs=714_188_480, error=Error(43.478, 20.934, "ImageNet val, torchvision"),
    about="torchvision's: a single column, no groups, no normalisation",
)  # fmt: skip
