"""GoogLeNet (Inception v1): Szegedy et al., "Going deeper with convolutions", arXiv 1409.4842, 2014.

An inception module has four branches on one input, concatenated: 1x1; 1x1 then 3x3; 1x1 then 5x5; 3x3 max pooling then
1x1. The 1x1 convolutions before the large ones are the point: on 28x28x256 they take 271 million multiply-adds instead
of 854 (``Inception(..., bottlenecks=False)`` is the naive module).

``googlenet_2014`` is the paper's: biases, local response normalisation, auxiliary classifiers after 4a and 4d whose
losses count 0.3 each. ``googlenet`` is torchvision's: batch normalisation, and 3x3 where the paper has 5x5 (a slip
that its published weights have fixed forever); ``aux_logits=True`` adds the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import twofold as tw
from twofold import nn
from twofold.nn import functional as F
from twofold.zoo.recipes import CENTRE, INCEPTION, QUICK, QUICK_UNNORMALISED, Recipe, Schedule
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER = Paper("Going deeper with convolutions", "Szegedy et al.", 2014, "CVPR 2015", "1409.4842")


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU: torchvision's unit."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Any) -> Any:
        return F.relu(self.bn(self.conv(x)))


class Conv(nn.Module):
    """Convolution with bias, ReLU: the paper's unit."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Any) -> Any:
        return F.relu(self.conv(x))


class Inception(nn.Module):
    """``n1`` 1x1; ``r3`` 1x1 then ``n3`` 3x3; ``r5`` 1x1 then ``n5`` 5x5; 3x3 pooling then ``p`` 1x1.

    ``five``: the kernel of the third branch (3 in torchvision). Without ``bottlenecks`` the convolutions read the input
    itself, the pooling branch keeps all channels, and ``r3``, ``r5``, ``p`` are not used.

    >>> import twofold as tw
    >>> from twofold.zoo import Inception
    >>> Inception(256, 128, 64, 192, 64, 96, 64).out_channels
    480
    >>> Inception(256, 128, 64, 192, 64, 96, 64, bottlenecks=False).out_channels
    672
    """

    def __init__(
        self, in_channels: int, n1: int, r3: int, n3: int, r5: int, n5: int, p: int,
        unit: Callable[..., nn.Module] = Conv, five: int = 5, bottlenecks: bool = True,
    ):  # fmt: skip
        pool = nn.MaxPool2d(3, 1, padding=1, ceil_mode=True)
        self.out_channels = n1 + n3 + n5 + (p if bottlenecks else in_channels)
        self.branch1 = unit(in_channels, n1, 1)
        self.branch2: nn.Module
        self.branch3: nn.Module
        self.branch4: nn.Module
        if bottlenecks:
            self.branch2 = nn.Sequential(unit(in_channels, r3, 1), unit(r3, n3, 3, padding=1))
            self.branch3 = nn.Sequential(unit(in_channels, r5, 1), unit(r5, n5, five, padding=five // 2))
            self.branch4 = nn.Sequential(pool, unit(in_channels, p, 1))
        else:
            self.branch2 = unit(in_channels, n3, 3, padding=1)
            self.branch3 = unit(in_channels, n5, five, padding=five // 2)
            self.branch4 = pool

    def forward(self, x: Any) -> Any:
        return tw.concat([branch(x) for branch in (self.branch1, self.branch2, self.branch3, self.branch4)], axis=1)


class AuxiliaryHead(nn.Module):
    """``pool`` (to 4x4; the paper's is 5x5 with stride 3), 1x1 convolution to 128, two linear layers, dropout 0.7."""

    def __init__(self, in_channels: int, num_classes: int, unit: Callable[..., nn.Module], pool: nn.Module):
        self.pool = pool
        self.conv = unit(in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Any) -> Any:
        x = F.flatten(self.conv(self.pool(x)), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


# #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj (table 1)
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class PaperPool(nn.Sequential):
    """5x5 with stride 3, which makes 4x4 of 14x14 maps (224x224 images); of other sizes, then averaged to 4x4."""

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(5, 3), nn.AdaptiveAvgPool2d(4))


class Style(NamedTuple):
    """What the two forms do differently: the unit, normalisation of the stem, the third branch's kernel, the last max
    pooling's, dropout before the last layer, the auxiliary heads' pooling."""

    unit: Callable[..., nn.Module]
    norm: Callable[[], nn.Module]
    five: int
    last_pool: int
    dropout: float
    aux_pool: Callable[[], nn.Module]


TORCHVISION = Style(ConvNorm, nn.Identity, 3, 2, 0.2, lambda: nn.AdaptiveAvgPool2d(4))
# Caffe's constants for local response normalisation
PAPER_2014 = Style(Conv, lambda: nn.LocalResponseNorm(5), 5, 3, 0.4, PaperPool)


class GoogLeNetOutputs(NamedTuple):
    """Scores in training with auxiliary heads, in torchvision's order: head 2 reads 4d (528 channels), head 1 4a."""

    logits: Any
    aux_logits2: Any
    aux_logits1: Any


class GoogLeNet(nn.Module):
    """``(N, 3, H, W)`` to ``(N, num_classes)``; with ``aux_logits``, in training, to ``GoogLeNetOutputs``.

    ``transform_input``: the input is normalised as torchvision does for its other networks, and is brought to the
    (x - 0.5) / 0.5 that GoogLeNet's published weights expect (set when ``googlenet-1378be20.pth`` is loaded).
    ``small_input``: a first convolution of 3x3 with stride 1, without pooling, for images of about 32x32.
    ``bottlenecks=False``: naive inception modules.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, style: Style = TORCHVISION, aux_logits: bool = False,
        transform_input: bool = False, small_input: bool = False, bottlenecks: bool = True,
    ):  # fmt: skip
        self.aux_logits, self.transform_input = aux_logits, transform_input
        unit = style.unit
        self.conv1 = unit(in_channels, 64, 3, padding=1) if small_input else unit(in_channels, 64, 7, 2, 3)
        self.maxpool1 = nn.Identity() if small_input else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = style.norm()
        self.conv2, self.conv3 = unit(64, 64, 1), unit(64, 192, 3, padding=1)
        self.norm2 = style.norm()
        self.maxpool2, self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(style.last_pool, 2, ceil_mode=True)
        channels, widths = 192, {}
        for name, numbers in MODULES.items():
            module = Inception(channels, *numbers, unit=unit, five=style.five, bottlenecks=bottlenecks)
            channels = widths[name] = module.out_channels
            setattr(self, f"inception{name}", module)
        if aux_logits:
            pool = (lambda: nn.AdaptiveAvgPool2d(4)) if small_input else style.aux_pool
            self.aux1 = AuxiliaryHead(widths["4a"], num_classes, unit, pool())
            self.aux2 = AuxiliaryHead(widths["4d"], num_classes, unit, pool())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(style.dropout)
        self.fc = nn.Linear(channels, num_classes)

    def _modules(self, x: Any, *names: str) -> Any:
        for name in names:
            x = getattr(self, f"inception{name}")(x)
        return x

    def forward(self, x: Any) -> Any:
        x = renormalised(x) if self.transform_input else x
        x = self.norm1(self.maxpool1(self.conv1(x)))  # 1/4
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))  # 1/8
        x = self.maxpool3(self._modules(x, "3a", "3b"))  # 1/16
        a = self._modules(x, "4a")
        d = self._modules(a, "4b", "4c", "4d")
        x = self.maxpool4(self._modules(d, "4e"))  # 1/32
        x = self._modules(x, "5a", "5b")
        scores = self.fc(self.dropout(F.flatten(self.avgpool(x), 1)))
        return GoogLeNetOutputs(scores, self.aux2(d), self.aux1(a)) if self.aux_logits and self.training else scores

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Cross-entropy of the scores, plus 0.3 of that of each auxiliary head."""
        if not isinstance(outputs, tuple):
            return F.cross_entropy(outputs, targets)
        main, *heads = (F.cross_entropy(scores, targets) for scores in outputs)
        return main + sum(heads) * 0.3


def renormalised(x: Any) -> Any:
    """(x - mean) / std of ImageNet's channels, as (x - 0.5) / 0.5."""
    column = lambda *values: tw.tensor([[[value]] for value in values], dtype=x.dtype)
    scale = column(0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5)
    return x * scale + column(*((mean - 0.5) / 0.5 for mean in (0.485, 0.456, 0.406)))


RECIPE = Recipe(
    lr=0.01, epochs=60, batch_size=32, momentum=0.9, weight_decay=2e-4, decay="weights",
    schedule=Schedule("poly", power=0.5), loss="model", augmentation=INCEPTION, evaluation=CENTRE, init="googlenet_2014",
    notes="Rate, schedule, batch and decay are those of Caffe's replica (2.4 million iterations, biases at "
    "twice the rate); the paper trains asynchronously, times 0.96 every 8 epochs, and averages the parameters.",
)  # fmt: skip
DOMAIN = Domain((3, 224, 224), 1000, 32, 16)
torchvision = Family(
    GoogLeNet, PAPER, DOMAIN, {"paper": RECIPE.but(init="truncated_normal"), "quick": QUICK.but(loss="model")},
    init="truncated_normal", optional=("aux1.*", "aux2.*"), published={"googlenet-1378be20": {"transform_input": True}},
)  # fmt: skip
paper = Family(
    GoogLeNet, PAPER, replace(DOMAIN, smallest=80), {"paper": RECIPE, "quick": QUICK_UNNORMALISED.but(loss="model")},
    init="googlenet_2014",
)  # fmt: skip

googlenet_2014 = paper(
    "googlenet_2014", params=13_378_280, macs=1_582_671_872, error=Error(None, 10.07), style=PAPER_2014,
    about="the paper's, with auxiliary classifiers (6,998,552 parameters without)", defaults={"aux_logits": True},
)  # fmt: skip
googlenet = torchvision(
    "googlenet", params=6_624_904, macs=1_498_376_192, error=Error(30.222, 10.47, "ImageNet val, torchvision"),
    about="torchvision's: batch normalisation, 3x3 for 5x5", style=TORCHVISION,
)  # fmt: skip
