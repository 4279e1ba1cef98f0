"""Training recipes as data: what the papers say of optimiser, schedule, decay, augmentation and initial values.

The training loop reads them; nothing here runs. Times are in epochs of the data the recipe was published for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves. ``kind``, and the fields it reads:

    * "constant"
    * "multistep": times ``gamma`` at each of ``milestones`` (epochs)
    * "step": times ``gamma`` every ``every`` epochs
    * "poly": times ``(1 - epoch/epochs) ** power``
    * "plateau": times ``gamma`` when the validation error has not improved for ``patience`` epochs, ``drops`` times
    * "table": the rate itself, from the epoch on: ``rates`` is ((epoch, rate), ...)

    ``warmup`` epochs at the rate ``warmup_lr``, or at the training's own where that is lower, come first.
    """

    kind: str = "constant"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    every: float = 0.0
    power: float = 1.0
    patience: int = 5
    drops: int | None = None
    rates: tuple[tuple[float, float], ...] = ()
    warmup: float = 0.0
    warmup_lr: float = 0.0


Step = tuple[str, Mapping[str, Any]]


def step(name: str, **options: Any) -> Step:
    """One transform of ``twofold.data.transforms`` and its arguments. The string "input" stands for the height (or
    width) of the images that the network is trained on, "mean" and "std" for the data set's."""
    return name, MappingProxyType(options)


@dataclass(frozen=True)
class Recipe:
    """How a network was, or can be, trained.

    ``optimizer``: "sgd", "rmsprop", "adam"; ``options`` are its further arguments. ``decay``: what the weight decay
    applies to, "all" parameters or "weights" (convolution and linear weights alone). ``init`` names a row of
    ``zoo.inits``; "default" becomes the network's own when it is registered. ``augmentation`` runs in training,
    ``evaluation`` otherwise. ``notes`` say what the published procedure has that the fields cannot express.
    """

    lr: float
    epochs: int
    batch_size: int
    schedule: Schedule = Schedule()
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: str = "all"
    augmentation: tuple[Step, ...] = ()
    evaluation: tuple[Step, ...] = ()
    init: str = "default"
    loss: str = "cross_entropy"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    notes: str = ""

    def but(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return replace(self, **changes)


# ---- augmentation ----------------------------------------------------------------------------------------------------
NORMALIZE = step("Normalize", mean="mean", std="std")
FLIP = step("RandomHorizontalFlip")
CIFAR_PLAIN = (NORMALIZE,)
CIFAR_AUGMENTED = (step("RandomCrop", size="input", padding=4), FLIP, NORMALIZE)  # "C10+" of the papers
CIFAR_REFLECTED = (step("RandomCrop", size="input", padding=4, mode="reflect"), FLIP, NORMALIZE)
LIGHTING = step("PCALighting", std=0.1)  # AlexNet's noise along the components of the colours
CENTRE = (step("Resize", size=256), step("CenterCrop", size="input"), NORMALIZE)
# Images of 256x256, the middle of those whose shorter side is 256; of each a random window
CROP = (step("Resize", size=256), step("CenterCrop", size=256), step("RandomCrop", size="input"), NORMALIZE)
CROP_FLIPPED = (*CROP[:-1], FLIP, NORMALIZE)
CROP_ALEXNET = (*CROP[:-1], FLIP, LIGHTING, NORMALIZE)
# GoogLeNet's: a random 8 to 100 % of the area, a random aspect, colour jitter
INCEPTION = (
    step("RandomResizedCrop", size="input"), FLIP, step("ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4),
    NORMALIZE
)  # fmt: skip
FB_TORCH = (*INCEPTION[:-1], LIGHTING, NORMALIZE)  # fb.resnet.torch's, and so that of most networks of 2016


def scaled(low: int, high: int) -> tuple[Step, ...]:
    """VGG's and ResNet's augmentation: the shorter side scaled at random to ``low`` to ``high``, a window, its mirror,
    AlexNet's noise."""
    return step("RandomScaledCrop", size="input", shorter=(low, high)), FLIP, LIGHTING, NORMALIZE


# ---- recipes shared by several networks ------------------------------------------------------------------------------
# A few minutes on a laptop and a small data set, the rate falling to zero
QUICK = Recipe(
    lr=0.05, epochs=5, batch_size=64, schedule=Schedule("poly", power=1.0, warmup=0.1, warmup_lr=0.005), nesterov=True,
    weight_decay=1e-4, decay="weights", augmentation=(NORMALIZE,), evaluation=(NORMALIZE,),
)  # fmt: skip
# Networks without batch normalisation would take far longer by the published rules: their first values let signals fade,
# so that for epochs all classes score alike. He's first values, and steps whose length does not go by the gradient's.
QUICK_UNNORMALISED = QUICK.but(
    optimizer="adam", lr=5e-4, batch_size=32, schedule=Schedule("poly", power=1.0), init="quick"
)
# The recipe of torchvision's reference scripts, with which its published weights were made
TORCHVISION = Recipe(
    lr=0.1, epochs=90, batch_size=256, schedule=Schedule("step", every=30), weight_decay=1e-4,
    augmentation=(step("RandomResizedCrop", size="input"), FLIP, NORMALIZE), evaluation=CENTRE,
    notes="Not the paper's: that of torchvision's reference scripts.",
)  # fmt: skip
# The ImageNet procedure of fb.resnet.torch, the program in which the networks of 2016 were trained
RESNET_TORCH = TORCHVISION.but(
    nesterov=True, augmentation=FB_TORCH, init="he_fan_out",
    notes="Images as in fb.resnet.torch, in which the authors trained: scale and aspect at random, colour jitter, lighting.",
)  # fmt: skip
