"""Stochastic depth: Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth", arXiv 1603.09382, 2016.

CIFAR's ResNet-110, in which each training step leaves out blocks at random: block l of L = 54 survives with
probability p_l = 1 - l/L * (1 - p_L), p_L = 0.5 (from 0.990741 to 0.5; 40.25 blocks on average). A dropped block is
not computed, gets a gradient of zero, and its batch statistics do not move; one draw serves the batch. At test time
every block is there, its branch times p_l. (Later libraries divide by p_l in training instead: another rule.)

Shortcuts are option A after averaging 2x2, as in the authors' code; two blocks have them, and they count among the 54.
"""

from __future__ import annotations

from typing import Any

import twofold as tw
from twofold.nn import functional as F
from twofold.zoo.leaving_out import with_all_gradients
from twofold.zoo.recipes import CIFAR_AUGMENTED, CIFAR_PLAIN, Recipe, Schedule
from twofold.zoo.registry import CIFAR10, Error, Family, Paper
from twofold.zoo.resnet import BasicBlock
from twofold.zoo.resnet_cifar import QUICK_WARMED, CifarResNet

PAPER = Paper(
    "Deep networks with stochastic depth", "Huang, Sun, Liu, Sedra, Weinberger", 2016, "ECCV 2016", "1603.09382"
)


class StochasticBlock(BasicBlock):
    """``relu(gate * branch(x) + skip(x))``: the gate is ``survival``, or in training 1 with that probability."""

    survival = 1.0

    def forward(self, x: Any) -> Any:
        skip = self.skip(x)
        if not self.training:
            return F.relu(self.branch(x) * self.survival + skip)
        gate = tw.random.bernoulli(self.survival)
        return F.relu(tw.cond(gate, lambda x, skip: self.branch(x) + skip, lambda x, skip: skip, x, skip))


class StochasticDepthResNet(CifarResNet):
    """``last_survival`` is p_L; ``decay``: "linear", or "uniform" (every p_l = p_L). ``depth`` is 6n+2."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, depth: int = 110, last_survival: float = 0.5,
        decay: str = "linear",
    ):  # fmt: skip
        super().__init__(num_classes, in_channels, depth, "A-average", StochasticBlock)
        if decay not in ("linear", "uniform"):
            raise tw.ArgumentError(f"stochastic depth: decay={decay!r}; expected 'linear' or 'uniform'")
        blocks = [part for part in self.modules() if isinstance(part, StochasticBlock)]
        for i, block in enumerate(blocks, 1):
            block.survival = 1 - (i / len(blocks) if decay == "linear" else 1) * (1 - last_survival)

    def forward(self, x: Any) -> Any:
        scores = super().forward(x)
        return with_all_gradients(scores, self) if self.training else scores


RECIPE = Recipe(
    lr=0.1, epochs=500, batch_size=128, momentum=0.9, nesterov=True, weight_decay=1e-4,
    schedule=Schedule("multistep", milestones=(250, 375)), augmentation=CIFAR_AUGMENTED, evaluation=CIFAR_PLAIN,
    init="he_fan_in", notes="Test error at the epoch that was best on 5,000 images held back.",
)  # fmt: skip
resnet110_stochastic_depth = Family(
    StochasticDepthResNet, PAPER, CIFAR10, {"paper": RECIPE, "quick": QUICK_WARMED}, init="he_fan_in"
)(
    "resnet110_stochastic_depth", params=1_727_962, macs=252_887_680, error=Error(5.23, None, "CIFAR-10+ test"),
    about="ResNet-110 whose blocks are left out at random in training", depth=110,
)  # fmt: skip
