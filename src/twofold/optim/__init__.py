"""Optimizers and learning-rate schedules."""

from twofold.optim.algorithms import SGD, Adam, AdamW, RMSprop
from twofold.optim.loss_scale import LossScale
from twofold.optim.optimizer import Group, Optimizer
from twofold.optim.schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearWarmup,
    MultiStepLR,
    PolynomialLR,
    ReduceLROnPlateau,
    Schedule,
    SequentialLR,
    StepLR,
)

__all__ = [
    "SGD", "Adam", "AdamW", "CosineAnnealingLR", "ExponentialLR", "Group", "LambdaLR", "LinearWarmup", "LossScale",
    "MultiStepLR", "Optimizer", "PolynomialLR", "RMSprop", "ReduceLROnPlateau", "Schedule", "SequentialLR", "StepLR",
]  # fmt: skip
