"""The protocol of transforms, and their composition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twofold.base.errors import ArgumentError, ShapeError
from twofold.data.randomness import SampleRng


class Transform:
    """A function of an image. A subclass defines ``apply`` or ``apply_batch``; each is derived from the other.

    Both leave their argument as it is, and both give the same numbers for the same sample. ``rng`` holds one sample
    for ``apply`` and N for ``apply_batch``; its draws are arrays of that length.
    """

    def apply(self, image: np.ndarray, rng: SampleRng) -> np.ndarray:
        """The image (C, H, W) transformed."""
        return self.apply_batch(image[None], rng)[0]

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        """The images (N, C, H, W) transformed; the results must share one shape."""
        return stack([self.apply(image, one) for image, one in zip(images, rng.each())])

    def __call__(self, images: np.ndarray, rng: SampleRng | None = None) -> np.ndarray:
        """One image or a batch, by the number of axes. Without ``rng``: seed 0, epoch 0, samples 0..N-1."""
        if images.ndim == 3:
            return self.apply(images, rng or SampleRng())
        if images.ndim == 4:
            return self.apply_batch(images, rng or SampleRng(index=np.arange(len(images))))
        raise ShapeError(
            f"{type(self).__name__}: got shape {images.shape}; expected an image (C, H, W) or a batch (N, C, H, W)"
        )

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({fields})"


class Compose(Transform):
    """Transforms one after the other; a ``Compose`` inside is spliced in. Each has its own random stream."""

    def __init__(self, transforms: Sequence[Transform | Callable]):
        self.transforms: list[Transform] = []
        for step in map(as_transform, transforms):
            self.transforms.extend(step.transforms if isinstance(step, Compose) else [step])

    def apply(self, image: np.ndarray, rng: SampleRng) -> np.ndarray:
        for position, step in enumerate(self.transforms):
            image = step.apply(image, rng.stream(position))
        return image

    def apply_batch(self, images: np.ndarray, rng: SampleRng) -> np.ndarray:
        for position, step in enumerate(self.transforms):
            images = step.apply_batch(images, rng.stream(position))
        return images


class Lambda(Transform):
    """A plain function of one image (C, H, W) as a transform; it is called from the loader's threads."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]):
        self.function = function

    def apply(self, image: np.ndarray, rng: SampleRng) -> np.ndarray:
        return self.function(image)


def as_transform(step: Transform | Callable) -> Transform:
    """``step`` itself, or a function of one image wrapped by ``Lambda``; ArgumentError for anything else."""
    if isinstance(step, Transform):
        return step
    if not callable(step) or isinstance(step, type):
        raise ArgumentError(f"{step!r} is not a transform; expected a Transform object or a function of an image")
    return Lambda(step)


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one shape as a batch; ShapeError with advice when they differ."""
    shapes = {np.shape(image) for image in images}
    if len(shapes) > 1:
        raise ShapeError(
            f"images of one batch have different shapes: {', '.join(map(str, sorted(shapes)))}; "
            "expected one; add Resize with CenterCrop, or RandomResizedCrop, to the transform"
        )
    return np.stack(images) if images else np.zeros((0,), np.float32)


def pair(value: int | Sequence[int], what: str, least: int = 1) -> tuple[int, int]:
    """``value`` as (vertical, horizontal), both at least ``least``; an int stands for both."""
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or not all(isinstance(v, (int, np.integer)) and v >= least for v in both):
        raise ArgumentError(f"{what} {value!r}; expected an int or (vertical, horizontal), each at least {least}")
    return int(both[0]), int(both[1])
