"""Transforms that move whole pixels: padding, crops, flips. They keep the dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError, ShapeError
from twofold.data.randomness import SampleRng
from twofold.data.transforms.base import Transform, pair

PAD_MODES: dict[str, Any] = {"zero": "constant", "reflect": "reflect", "edge": "edge"}  # ours -> NumPy's


class Pad(Transform):
    """``padding`` pixels (an int, or (vertical, horizontal)) on both sides: zeros, a reflection, or the edge."""

    def __init__(self, padding: int | Sequence[int], mode: str = "zero"):
        if mode not in PAD_MODES:
            raise ArgumentError(f"Pad: mode {mode!r}; expected one of {', '.join(map(repr, PAD_MODES))}")
        self.padding, self.mode = pair(padding, "Pad: padding", least=0), mode

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        (v, h), (height, width) = self.padding, images.shape[2:]
        if self.mode == "reflect" and (v >= height or h >= width):
            raise ShapeError(f"Pad: reflecting {self.padding} pixels needs a larger image than {height}x{width}")
        if self.mode == "zero":
            out = np.zeros((*images.shape[:2], height + 2 * v, width + 2 * h), images.dtype)
            out[:, :, v : v + height, h : h + width] = images
            return out
        return np.pad(images, ((0, 0), (0, 0), (v, v), (h, h)), mode=PAD_MODES[self.mode])


class CenterCrop(Transform):
    """The middle ``size`` (an int, or (height, width)) of the image; an odd pixel of margin goes below and right."""

    def __init__(self, size: int | Sequence[int]):
        self.size = pair(size, "CenterCrop: size")

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        _check_size("CenterCrop", self.size, images)
        top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], self.size))
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]


class RandomCrop(Transform):
    """A window of ``size`` (an int, or (height, width)) anywhere, after ``padding`` (as ``Pad``)."""

    def __init__(self, size: int | Sequence[int], padding: int | Sequence[int] = 0, mode: str = "zero"):
        self.size, self.pad = pair(size, "RandomCrop: size"), Pad(padding, mode)

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        images = self.pad.apply_batch(images, rng) if any(self.pad.padding) else images
        _check_size("RandomCrop", self.size, images)
        top, left = (rng.integers(have - want + 1) for have, want in zip(images.shape[2:], self.size))
        windows = np.lib.stride_tricks.sliding_window_view(images, self.size, axis=(2, 3))
        return windows[np.arange(len(images)), :, top, left]


class RandomHorizontalFlip(Transform):
    """Mirrors left and right with probability ``p``."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ArgumentError(f"RandomHorizontalFlip: p={p}; expected a probability from 0 to 1")
        self.p = p

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        flip = rng.uniform() < self.p
        out = images.copy()
        out[flip] = images[flip][..., ::-1]
        return out


def _check_size(name: str, size: tuple[int, int], images: np.ndarray) -> None:
    height, width = images.shape[2:]
    if height < size[0] or width < size[1]:
        raise ShapeError(
            f"{name}: a window of {size[0]}x{size[1]} does not fit an image of {height}x{width}; "
            "put Resize before it, or add padding"
        )
