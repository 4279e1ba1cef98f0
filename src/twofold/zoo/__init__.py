"""The landmark convolutional networks, LeNet-5 to SqueezeNet, as their papers describe them.

    tw.zoo.names()                                  what there is
    tw.zoo.info("resnet50")                         year, paper, parameters, multiply-adds, published error, recipes
    tw.zoo.create("resnet50", num_classes=10)       a network; also tw.zoo.resnet50(10)
    tw.zoo.create("resnet50", weights="resnet50-0676ba61.pth")

Networks map images ``(N, C, H, W)`` to scores ``(N, num_classes)``. A network whose loss is not plain cross-entropy has
a method ``loss(outputs, targets)``. Where torchvision has a network, parameters have the names it gives them.
"""

from __future__ import annotations

from twofold.zoo.inits import initialise
from twofold.zoo.lenet5 import lenet5, lenet5_1998
from twofold.zoo.recipes import Recipe, Schedule
from twofold.zoo.registry import Domain, Entry, Error, Paper, create, info, names

__all__ = [
    "Domain", "Entry", "Error", "Paper", "Recipe", "Schedule", "create", "info", "initialise", "lenet5", "lenet5_1998", "names",
]  # fmt: skip
