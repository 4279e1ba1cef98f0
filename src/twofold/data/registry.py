"""The data sets by name, and what a program needs to know of each before loading it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from twofold.base.errors import ArgumentError, DataError
from twofold.data.cifar import cifar10, cifar100
from twofold.data.dataset import Dataset, checked_split
from twofold.data.folder import ImageFolder
from twofold.data.locate import Root
from twofold.data.mnist_family import fashion_mnist, mnist
from twofold.data.uci_digits import digits


class Info(NamedTuple):
    """A data set: how to load it; shape of an image; classes; mean and deviation of each channel, in 0..1."""

    load: Callable[..., Dataset]
    shape: tuple[int, int, int] | None  # None: depends on the files
    num_classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    about: str


def image_folder(split: str = "train", *, root: Root = None, download: bool = True) -> ImageFolder:
    """``ImageFolder`` of ROOT/train, and of ROOT/test, ROOT/val or ROOT/validation for the split "test"."""
    if root is None:
        raise DataError("image-folder: no folder named; expected root=... (--data-dir) with train/ and test/ inside")
    names = ("train",) if checked_split("image-folder", split) == "train" else ("test", "val", "validation")
    for name in names:
        if (folder := Path(root).expanduser() / name).is_dir():
            return ImageFolder(folder)
    raise DataError(f"image-folder: {root} has no subfolder {' or '.join(names)}; expected one for the split {split!r}")


# Means and deviations are those of the training images.
TABLE = {
    "cifar10": Info(
        cifar10, (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "60,000 photographs, 10 classes"
    ),
    "cifar100": Info(
        cifar100,
        (3, 32, 32),
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "60,000 photographs, 100 classes",
    ),
    "digits": Info(digits, (1, 8, 8), 10, (0.3053,), (0.3760,), "1,797 scanned digits, in the package"),
    "fashion-mnist": Info(fashion_mnist, (1, 28, 28), 10, (0.2860,), (0.3530,), "70,000 articles of clothing"),
    "image-folder": Info(
        image_folder, None, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "your images: ROOT/{train,test}/CLASS/*"
    ),  # ImageNet's mean and deviation
    "mnist": Info(mnist, (1, 28, 28), 10, (0.1307,), (0.3081,), "70,000 scanned digits"),
}


def names() -> list[str]:
    """Names that ``load`` takes, in order.

    >>> from twofold import data
    >>> "digits" in data.names()
    True
    """
    return sorted(TABLE)


def info(name: str) -> Info:
    """What is known of a data set; underscores and hyphens are the same. ArgumentError for an unknown name."""
    key = name.lower().replace("_", "-")
    if key not in TABLE:
        raise ArgumentError(f"data set {name!r} is unknown; expected one of {', '.join(names())}")
    return TABLE[key]


def load(name: str, split: str = "train", root: Root = None, *, download: bool = True) -> Dataset:
    """A data set by name: ``load("fashion-mnist", "test", root="/data")``. ``root``: the folder of its files."""
    return info(name).load(split, root=root, download=download)
