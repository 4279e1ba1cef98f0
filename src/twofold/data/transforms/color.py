"""Transforms of intensities: units, normalisation, and colour noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twofold.base.errors import ArgumentError, DtypeError, ShapeError
from twofold.data.randomness import SampleRng
from twofold.data.transforms.base import Transform

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601: grey from red, green, blue

# Principal components of ImageNet's RGB values in 0..1 (AlexNet, section 4.1; figures of Facebook's fb.resnet.torch)
IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 as float32 0..1; float32 as it is; DtypeError for anything else."""
    if images.dtype == np.uint8:
        return images * np.float32(1 / 255)
    if images.dtype == np.float32:
        return images
    raise DtypeError(f"images are {images.dtype}; expected uint8 (0..255) or float32 (0..1); convert with astype")


class ToFloat(Transform):
    """uint8 0..255 to float32 0..1; float32 images pass. (``DataLoader`` does this before any transform.)"""

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        return to_float(images)


class Scale(Transform):
    """``image * factor + offset``: other units, for example ``Scale(255)`` for networks trained on 0..255."""

    def __init__(self, factor: float, offset: float = 0.0):
        self.factor, self.offset = float(factor), float(offset)

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        return to_float(images) * np.float32(self.factor) + np.float32(self.offset)


class Normalize(Transform):
    """``(image - mean) / std``, one number for each channel, or one for all, in units 0..1."""

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]):
        self.mean, self.std = (tuple(np.atleast_1d(v).astype(float).tolist()) for v in (mean, std))
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ArgumentError(f"Normalize: mean={mean}, std={std}; expected equal lengths and positive deviations")
        self._factor = np.array([1 / s for s in self.std], np.float32).reshape(-1, 1, 1)
        self._offset = np.array([-m / s for m, s in zip(self.mean, self.std)], np.float32).reshape(-1, 1, 1)

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        if images.dtype != np.float32:
            raise DtypeError(f"Normalize: images are {images.dtype}; expected float32 (put ToFloat before it)")
        if len(self.mean) not in (1, images.shape[1]):
            raise ShapeError(
                f"Normalize: images {images.shape[1:]} have {images.shape[1]} channels; "
                f"expected {len(self.mean)}, as mean {self.mean}"
            )
        out = images * self._factor
        out += self._offset
        return out


class ColorJitter(Transform):
    """Brightness, contrast and saturation, in this order, each by a factor from [1 - v, 1 + v]; clipped to 0..1.

    Contrast moves away from the image's mean grey, saturation from each pixel's grey; grey images (one channel) skip
    saturation. (Howard, "Some improvements on deep convolutional neural network based image classification", 2013.)
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0):
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value <= 1:
                raise ArgumentError(f"ColorJitter: {name}={value}; expected 0 to 1")
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        def factor(spread: float) -> np.ndarray:
            return rng.uniform(1 - spread, 1 + spread).astype(np.float32).reshape(-1, 1, 1, 1)

        brightness, contrast, saturation = map(factor, (self.brightness, self.contrast, self.saturation))
        images = np.clip(to_float(images) * brightness, 0, 1)
        if self.contrast:
            mean = _grey("ColorJitter", images).mean(axis=(1, 2, 3), keepdims=True)
            images = np.clip(mean + (images - mean) * contrast, 0, 1)
        if self.saturation and images.shape[1] == 3:
            grey = _grey("ColorJitter", images)
            images = np.clip(grey + (images - grey) * saturation, 0, 1)
        return images


class PCALighting(Transform):
    """AlexNet's colour noise: adds the principal components of RGB times their eigenvalues times N(0, ``std``).

    Krizhevsky et al., NIPS 2012, section 4.1, with std 0.1. For RGB images in units 0..1; the result is not clipped.
    """

    def __init__(
        self,
        std: float = 0.1,
        eigenvalues: Sequence[float] = IMAGENET_EIGENVALUES,
        eigenvectors: Sequence[Sequence[float]] = IMAGENET_EIGENVECTORS,
    ):
        self.std = float(std)
        self._components = np.asarray(eigenvectors, np.float64) * np.asarray(eigenvalues, np.float64)
        if self._components.shape != (3, 3):
            raise ShapeError(f"PCALighting: components have shape {self._components.shape}; expected (3, 3)")

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        if images.shape[1] != 3:
            raise ShapeError(f"PCALighting: images {images.shape[1:]} have {images.shape[1]} channels; expected 3, RGB")
        alpha = np.stack([rng.normal() for _ in range(3)], axis=1) * self.std
        noise = (alpha[:, None, :] * self._components).sum(axis=2)
        return to_float(images) + noise.astype(np.float32)[:, :, None, None]


def _grey(name: str, images: np.ndarray) -> np.ndarray:
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise ShapeError(f"{name}: images {images.shape[1:]} have {images.shape[1]} channels; expected 1 or 3")
    red, green, blue = (images[:, c : c + 1] * LUMA[c] for c in range(3))
    return red + green + blue
