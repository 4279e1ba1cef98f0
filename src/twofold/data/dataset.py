"""What a data set is: a length and samples ``(image, label)``; and the kind that lives in memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from twofold.base.errors import ArgumentError, DtypeError, IndexRangeError, ShapeError


class Dataset:
    """Base of data sets: subclasses give ``__len__`` and ``__getitem__(i) -> (image, label)``.

    ``image`` is an array (C, H, W), uint8 0..255 or float32 0..1; ``label`` is an int below ``num_classes``. Any object
    with those two methods also serves; the base adds ``subset``.
    """

    classes: Sequence[str] = ()

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def subset(self, indices: Iterable[int]) -> Dataset:
        """The samples at ``indices``, in that order. IndexRangeError if one is out of range."""
        return Subset(self, checked_indices(indices, len(self)))


class ArrayDataset(Dataset):
    """Images and labels in memory: ``ArrayDataset(images, labels, classes=("cat", "dog"))``.

    ``images`` is (N, C, H, W) (any array with N first is taken; image transforms need four axes); ``labels`` has N
    entries: integers become int64 and must lie in [0, num_classes), floating targets stay as they are. Arrays are
    kept, not copied. A whole batch is read by one indexing, see ``batch``.

    >>> import numpy as np
    >>> data = ArrayDataset(np.zeros((4, 1, 8, 8), np.uint8), [0, 1, 0, 1], classes=("even", "odd"))
    >>> len(data), data.num_classes, data[1][0].shape
    (4, 2, (1, 8, 8))
    """

    def __init__(self, images: Any, labels: Any, classes: Sequence[str] | None = None, *, source: str = ""):
        self.images, self.labels = np.asarray(images), np.asarray(labels)
        if self.images.ndim == 0 or self.labels.ndim == 0 or len(self.images) != len(self.labels):
            raise ShapeError(
                f"ArrayDataset: images have shape {self.images.shape}, labels {self.labels.shape}; "
                "expected the same number of samples along the first axis"
            )
        self.source = source
        kind = self.labels.dtype.kind
        if kind in "iu" or self.labels.size == 0:
            self.labels = self.labels.astype(np.int64)
            count = int(self.labels.max(initial=-1)) + 1
            self.classes = tuple(map(str, range(count))) if classes is None else tuple(classes)
            self._check_labels()
        elif kind == "f":
            self.classes = tuple(classes or ())
        else:
            raise DtypeError(f"ArrayDataset: labels have dtype {self.labels.dtype}; expected integers or floats")

    def _check_labels(self) -> None:
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if wrong.size:
            where = int(wrong[0])
            raise IndexRangeError(
                f"ArrayDataset: label {self.labels.reshape(-1)[where]} at position {where}; "
                f"expected 0 to {len(self.classes) - 1} ({len(self.classes)} classes)"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        index = checked_index(index, len(self))
        return self.images[index], self.labels[index]

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the images and labels at ``indices``."""
        return self.images[indices], self.labels[indices]

    def subset(self, indices: Iterable[int]) -> ArrayDataset:
        """The samples at ``indices``, copied."""
        images, labels = self.batch(checked_indices(indices, len(self)))
        return ArrayDataset(images, labels, self.classes, source=self.source)

    def __repr__(self) -> str:
        return f"ArrayDataset(images={self.images.shape} {self.images.dtype}, num_classes={self.num_classes})"


class Subset(Dataset):
    """Some samples of another data set; made by ``Dataset.subset``."""

    def __init__(self, dataset: Dataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.classes = dataset.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.dataset[int(self.indices[checked_index(index, len(self))])]


def checked_index(index: int, length: int) -> int:
    """``index`` as an int in [0, length), counted from the end if negative; IndexRangeError otherwise."""
    position = operator.index(index)
    if not -length <= position < length:
        raise IndexRangeError(f"sample {position} of a data set with {length}; expected {-length} to {length - 1}")
    return position % length


def checked_indices(indices: Iterable[int], length: int) -> np.ndarray:
    """``indices`` as int64, each checked by ``checked_index``."""
    return np.array([checked_index(i, length) for i in indices], np.int64)


def checked_split(name: str, split: str, allowed: Sequence[str] = ("train", "test")) -> str:
    """``split`` if it is one of ``allowed``; ArgumentError otherwise."""
    if split not in allowed:
        raise ArgumentError(f"{name}: split {split!r}; expected {' or '.join(map(repr, allowed))}")
    return split
