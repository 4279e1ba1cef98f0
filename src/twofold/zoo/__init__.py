"""The landmark convolutional networks, LeNet-5 to SqueezeNet, as their papers describe them.

    tw.zoo.names()                                  what there is
    tw.zoo.info("resnet50")                         year, paper, parameters, multiply-adds, published error, recipes
    tw.zoo.create("resnet50", num_classes=10)       a network; also tw.zoo.resnet50(10)
    tw.zoo.create("resnet50", weights="resnet50-0676ba61.pth")
    tw.zoo.ensemble([a, b, c])                      networks that vote

Networks map images ``(N, C, H, W)`` to scores ``(N, num_classes)``. A network whose loss is not plain cross-entropy has
a method ``loss(outputs, targets)``. Where torchvision has a network, parameters have the names it gives them.

Modules of this package and networks may share a name (``zoo.alexnet``): the attribute is the network.
"""

# ruff: noqa: I001 (the order is that of publication, and so that of the table)

from __future__ import annotations

from twofold.zoo.ensemble import Ensemble, ensemble
from twofold.zoo.inits import initialise
from twofold.zoo.recipes import Recipe, Schedule
from twofold.zoo.registry import Domain, Entry, Error, Paper, create, info, names

from twofold.zoo.lenet5 import lenet5, lenet5_1998
from twofold.zoo.alexnet import alexnet, alexnet_2012
from twofold.zoo.zfnet import zfnet, zfnet_cs231n
from twofold.zoo.nin import nin_cifar10, nin_imagenet
from twofold.zoo.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from twofold.zoo.googlenet import GoogLeNetOutputs, Inception, googlenet, googlenet_2014
from twofold.zoo.resnet import plain18, plain34, resnet18, resnet34, resnet50, resnet101, resnet152
from twofold.zoo.resnet_cifar import (
    plain20_cifar, plain56_cifar, resnet20_cifar, resnet32_cifar, resnet44_cifar, resnet56_cifar, resnet110_cifar,
    resnet1202_cifar,
)  # fmt: skip
from twofold.zoo.squeezenet import squeezenet1_0, squeezenet1_1, squeezenet_bypass, squeezenet_complex_bypass
from twofold.zoo.preact_resnet import (
    preact_resnet18, preact_resnet20_cifar, preact_resnet32_cifar, preact_resnet34, preact_resnet44_cifar,
    preact_resnet50,
    preact_resnet56_cifar, preact_resnet101, preact_resnet110_cifar, preact_resnet152, preact_resnet164_cifar,
    preact_resnet200, preact_resnet1001_cifar,
)  # fmt: skip
from twofold.zoo.stochastic_depth import resnet110_stochastic_depth
from twofold.zoo.wide_resnet import wide_resnet50_2, wide_resnet101_2, wrn_16_8, wrn_28_10, wrn_40_4
from twofold.zoo.fractalnet import fractalnet20_cifar, fractalnet34_imagenet
from twofold.zoo.densenet import (
    densenet40_k12, densenet121, densenet161, densenet169, densenet201, densenet_bc_100_12,
)  # fmt: skip
from twofold.zoo.resnext import resnext29_8x64d, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d

__all__ = [
    "Domain", "Ensemble", "Entry", "Error", "GoogLeNetOutputs", "Inception", "Paper", "Recipe", "Schedule",
    "alexnet", "alexnet_2012", "create", "densenet121", "densenet161", "densenet169", "densenet201", "densenet40_k12",
    "densenet_bc_100_12", "ensemble", "fractalnet20_cifar", "fractalnet34_imagenet", "googlenet", "googlenet_2014",
    "info",
    "initialise", "lenet5", "lenet5_1998", "names", "nin_cifar10", "nin_imagenet", "plain18", "plain20_cifar",
    "plain34",
    "plain56_cifar", "preact_resnet1001_cifar", "preact_resnet101", "preact_resnet110_cifar", "preact_resnet152",
    "preact_resnet164_cifar", "preact_resnet18", "preact_resnet200", "preact_resnet20_cifar", "preact_resnet32_cifar",
    "preact_resnet34", "preact_resnet44_cifar", "preact_resnet50", "preact_resnet56_cifar", "resnet101",
    "resnet110_cifar",
    "resnet110_stochastic_depth", "resnet1202_cifar", "resnet152", "resnet18", "resnet20_cifar", "resnet32_cifar",
    "resnet34",
    "resnet44_cifar", "resnet50", "resnet56_cifar", "resnext101_32x8d", "resnext101_64x4d", "resnext29_8x64d",
    "resnext50_32x4d",
    "squeezenet1_0", "squeezenet1_1", "squeezenet_bypass", "squeezenet_complex_bypass", "vgg11", "vgg11_bn", "vgg13",
    "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "wide_resnet101_2", "wide_resnet50_2", "wrn_16_8",
    "wrn_28_10",
    "wrn_40_4", "zfnet", "zfnet_cs231n",
]  # fmt: skip
