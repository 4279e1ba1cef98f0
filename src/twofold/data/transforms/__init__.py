"""Transforms of images: float32 arrays (C, H, W) or batches (N, C, H, W), intensities 0..1 until ``Normalize``.

Randomness is keyed by (seed, epoch, sample index): a sample gets the same treatment whatever its batch or thread.

>>> import numpy as np
>>> from twofold.data import transforms as T
>>> augment = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.Normalize((0.5,), (0.25,))])
>>> augment(np.zeros((3, 32, 32), np.float32)).shape
(3, 32, 32)
"""

from __future__ import annotations

from twofold.data.transforms.base import Compose, Lambda, Transform
from twofold.data.transforms.color import ColorJitter, Normalize, PCALighting, Scale, ToFloat
from twofold.data.transforms.crop import CenterCrop, Pad, RandomCrop, RandomHorizontalFlip
from twofold.data.transforms.resample import RandomResizedCrop, RandomScaledCrop, Resize, resize

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "Lambda",
    "Normalize",
    "PCALighting",
    "Pad",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomScaledCrop",
    "Resize",
    "Scale",
    "ToFloat",
    "Transform",
    "resize",
]
