"""Network in network: Lin, Chen, Yan, arXiv 1312.4400, 2013.

An "mlpconv" is a convolution followed by two 1x1 convolutions ("cccp" in the authors' files), each with ReLU: a small
network that slides over the image. There are no fully connected layers: the last maps, one a class, are averaged.
"""

from __future__ import annotations

from typing import Any

from twofold import nn
from twofold.base.errors import ArgumentError
from twofold.zoo.recipes import CENTRE, CIFAR_AUGMENTED, CIFAR_PLAIN, CROP_FLIPPED, QUICK_UNNORMALISED, Recipe, Schedule
from twofold.zoo.registry import Domain, Error, Family, Paper

PAPER = Paper("Network in network", "Lin, Chen, Yan", 2013, "ICLR 2014", "1312.4400")


def mlpconv(
    first: tuple[str, nn.Conv2d], cccp: tuple[tuple[str, int], tuple[str, int]], after: dict[str, nn.Module]
) -> dict[str, nn.Module]:
    """A convolution, two 1x1 convolutions of the given widths, ReLU after each; then what follows."""
    name, conv = first
    layers: dict[str, nn.Module] = {name: conv, f"relu_{name}": nn.ReLU()}
    channels = conv.out_channels
    for label, width in cccp:
        layers |= {label: nn.Conv2d(channels, width, 1), f"relu_{label}": nn.ReLU()}
        channels = width
    return layers | after


def end(i: int, pool: nn.Module) -> dict[str, nn.Module]:
    return {f"pool{i}": pool, f"drop{i}": nn.Dropout(0.5)}


class GlobalAverage(nn.Module):
    """``(N, C, H, W)`` to the mean of each map, ``(N, C)``."""

    def forward(self, x: Any) -> Any:
        return x.mean(axis=(2, 3))


POOLS: dict[str, Any] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


def nin_cifar(num_classes: int = 10, in_channels: int = 3, pool2: str = "max") -> nn.Module:
    """For 32x32 images. ``pool2``: "max" as in the paper and the authors' files of 2013 (NIN/cifar-10_def of their
    cuda-convnet), or "avg" as in the Caffe model that one of them published in 2014, and most copies."""
    if pool2 not in POOLS:
        raise ArgumentError(f"nin_cifar10: pool2={pool2!r}; expected one of {', '.join(map(repr, POOLS))}")
    return nn.Sequential({
        **mlpconv(("conv1", nn.Conv2d(in_channels, 192, 5, padding=2)), (("cccp1", 160), ("cccp2", 96)),
                  end(1, nn.MaxPool2d(3, 2, ceil_mode=True))),
        **mlpconv(("conv2", nn.Conv2d(96, 192, 5, padding=2)), (("cccp3", 192), ("cccp4", 192)),
                  end(2, POOLS[pool2](3, 2, ceil_mode=True))),
        **mlpconv(("conv3", nn.Conv2d(192, 192, 3, padding=1)), (("cccp5", 192), ("cccp6", num_classes)),
                  {"pool3": GlobalAverage()}),
    })  # fmt: skip


def nin_224(num_classes: int = 1000, in_channels: int = 3, small_input: bool = False) -> nn.Module:
    """For 224x224 images. ``small_input``: a first convolution of 3x3 with stride 1, for images from 8x8."""
    conv1 = nn.Conv2d(in_channels, 96, 3, padding=1) if small_input else nn.Conv2d(in_channels, 96, 11, 4)
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
    return nn.Sequential({
        **mlpconv(("conv1", conv1), (("cccp1", 96), ("cccp2", 96)), {"pool1": pool()}),
        **mlpconv(("conv2", nn.Conv2d(96, 256, 5, padding=2)), (("cccp3", 256), ("cccp4", 256)), {"pool2": pool()}),
        **mlpconv(("conv3", nn.Conv2d(256, 384, 3, padding=1)), (("cccp5", 384), ("cccp6", 384)), end(3, pool())),
        **mlpconv(("conv4", nn.Conv2d(384, 1024, 3, padding=1)), (("cccp7", 1024), ("cccp8", num_classes)),
                  {"pool4": GlobalAverage()}),
    })  # fmt: skip


# NIN/cifar-10_params and the README beside it: a cost of weight 0.1 at rate 1, decay 1e-5 a step, which is 1e-4 at 0.1
CIFAR_RECIPE = Recipe(
    lr=0.1, epochs=260, batch_size=128, momentum=0.9, weight_decay=1e-4, decay="weights",
    schedule=Schedule("multistep", milestones=(200, 230)),
    augmentation=CIFAR_AUGMENTED, evaluation=CIFAR_PLAIN, init="nin_cifar10",
    notes="From the authors' files, with which CIFAR-10 without augmentation ends at 10.4 %. Images have their contrast "
    "normalised and are whitened (ZCA) as in maxout networks; biases learn at twice the rate, the last layer at a "
    "tenth.",
)  # fmt: skip
IMAGENET_RECIPE = Recipe(
    lr=0.01, epochs=23, batch_size=64, momentum=0.9, weight_decay=5e-4, decay="weights",
    schedule=Schedule("step", every=10), augmentation=CROP_FLIPPED, evaluation=CENTRE, init="nin_imagenet",
    notes="Of the published Caffe model: 450,000 iterations, a tenth of the rate after each 200,000; biases learn at "
    "twice the rate.",
)  # fmt: skip

nin_cifar10 = Family(
    nin_cifar,
    PAPER,
    Domain((3, 32, 32), 10, 4),
    {"paper": CIFAR_RECIPE, "quick": QUICK_UNNORMALISED.but(init="quick_nin_cifar10")},
    init="nin_cifar10",
)("nin_cifar10", params=966_986, macs=222_486_528, error=Error(8.81, None, "CIFAR-10+ test"), about="for 32x32 images")
nin_imagenet = Family(
    nin_224, PAPER, Domain((3, 224, 224), 1000, 39, 8),
    {"paper": IMAGENET_RECIPE, "quick": QUICK_UNNORMALISED.but(init="quick_nin_imagenet")}, init="nin_imagenet",
)(
    "nin_imagenet", params=7_595_176, macs=1_100_188_800, error=Error(40.6, None), about="for 224x224 images"
)  # fmt: skip
