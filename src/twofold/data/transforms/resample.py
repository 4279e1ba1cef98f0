"""Resampling: bilinear, with a filter as wide as a shrunk pixel (antialias) or without."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from twofold.base.errors import ArgumentError, DtypeError
from twofold.data.randomness import SampleRng
from twofold.data.transforms.base import Transform, pair

_ATTEMPTS = 10  # windows drawn before falling back on the middle, as GoogLeNet's reimplementations do


@functools.lru_cache(maxsize=16)  # dense: some megabytes each for a large photograph
def weights(size: int, out: int, antialias: bool, pixels: range | None = None) -> np.ndarray:
    """The matrix float32 (out, size) that resamples one axis by a triangle filter; rows sum to one. ``pixels``: of the
    output, these alone.

    Pixel centres lie at half-integers ("align corners" off). With ``antialias`` the triangle is as wide as one output
    pixel when shrinking, as Pillow's BILINEAR; without, it is one input pixel wide and edge pixels repeat.
    """
    scale = size / out
    centre = (np.asarray(pixels or range(out)) + 0.5) * scale
    if antialias:
        support = max(scale, 1.0)
        distance = (np.arange(size) + 0.5 - centre[:, None]) / support
        table = np.maximum(0.0, 1.0 - np.abs(distance))
        table /= table.sum(axis=1, keepdims=True)
        return table.astype(np.float32)
    position = np.clip(centre - 0.5, 0, size - 1)
    low = np.minimum(position.astype(np.int64), max(size - 2, 0))
    table = np.zeros((len(centre), size))
    rows = np.arange(len(centre))
    np.add.at(table, (rows, low), 1 - (position - low))
    np.add.at(table, (rows, np.minimum(low + 1, size - 1)), position - low)
    return table.astype(np.float32)


def resize(
    images: np.ndarray, size: tuple[int, int], antialias: bool = True, window: tuple[range, range] | None = None
) -> np.ndarray:
    """float32 images (..., H, W) resampled to ``size`` = (height, width); of that the ``window`` (rows, columns) alone."""
    if images.dtype != np.float32:
        raise DtypeError(f"resize: images are {images.dtype}; expected float32 (put ToFloat before it)")
    rows, columns = window or map(range, size)
    height, width = images.shape[-2:]
    if height == size[0]:
        images = images[..., rows.start : rows.stop, :]
    else:
        images = np.matmul(weights(height, size[0], antialias, rows), images)
    if width == size[1]:
        return images[..., columns.start : columns.stop]
    return np.matmul(images, weights(width, size[1], antialias, columns).T)


class Resize(Transform):
    """Bilinear to ``size``: (height, width), or an int for the shorter side (the longer keeps the proportions)."""

    def __init__(self, size: int | Sequence[int], antialias: bool = True):
        self.size = pair(size, "Resize: size") if not isinstance(size, int) else pair(size, "Resize: size")[0]
        self.antialias = antialias

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        if isinstance(self.size, tuple):
            return resize(images, self.size, self.antialias)
        return resize(images, in_proportion(images.shape[-2:], self.size), self.antialias)


def in_proportion(size: Sequence[int], shorter: int) -> tuple[int, int]:
    """(height, width) in the proportions of ``size``, the shorter side being ``shorter``."""
    height, width = size
    return max(1, shorter * height // min(size)), max(1, shorter * width // min(size))


class RandomScaledCrop(Transform):
    """A window of ``size`` anywhere in the image, whose shorter side is scaled to a random length.

    ``shorter`` is the range of that length in pixels, both ends included: "scale jittering" of Simonyan and Zisserman,
    arXiv 1409.1556, section 3.1 (256 to 512), and of He et al., arXiv 1512.03385, section 3.4 (256 to 480).
    """

    def __init__(self, size: int | Sequence[int], shorter: tuple[int, int], antialias: bool = True):
        self.size, self.shorter, self.antialias = pair(size, "RandomScaledCrop: size"), shorter, antialias
        two = isinstance(shorter, Sequence) and len(shorter) == 2 and all(isinstance(v, (int, np.integer)) for v in shorter)
        if not two or not max(self.size) <= shorter[0] <= shorter[1]:
            raise ArgumentError(
                f"RandomScaledCrop: shorter={shorter!r} for windows of {self.size}; expected two lengths in pixels, "
                "the first at least the window's larger side, the second at least the first"
            )

    def apply(self, image: np.ndarray, rng: SampleRng) -> np.ndarray:
        low, high = self.shorter
        scaled = in_proportion(image.shape[-2:], low + rng.integers(high - low + 1).item())
        top, left = (rng.integers(have - want + 1).item() for have, want in zip(scaled, self.size))
        window = range(top, top + self.size[0]), range(left, left + self.size[1])
        return resize(image, scaled, self.antialias, window)


class RandomResizedCrop(Transform):
    """A window of random area and proportions, resampled to ``size`` (Szegedy et al., CVPR 2015, section 6).

    ``scale`` is the range of the window's share of the image's area, ``ratio`` that of width to height (drawn on a
    logarithmic scale). If ten draws do not fit, the middle of the image with the nearest allowed proportions is taken.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        antialias: bool = True,
    ):
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high:
                raise ArgumentError(f"RandomResizedCrop: {name}={(low, high)}; expected 0 < low <= high")
        self.size, self.scale, self.ratio = pair(size, "RandomResizedCrop: size"), scale, ratio
        self.antialias = antialias

    def apply(self, image: np.ndarray, rng: SampleRng) -> np.ndarray:
        top, left, height, width = self.window(image.shape[1], image.shape[2], rng)
        return resize(image[:, top : top + height, left : left + width], self.size, self.antialias)

    def window(self, height: int, width: int, rng: SampleRng) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the window drawn for an image of this size."""
        for _ in range(_ATTEMPTS):
            area = height * width * rng.uniform(*self.scale).item()
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])).item())
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return rng.integers(height - h + 1).item(), rng.integers(width - w + 1).item(), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
        return (height - h) // 2, (width - w) // 2, h, w
