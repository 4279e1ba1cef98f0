"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 in ten classes, in four IDX files each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from twofold.base.errors import FormatError
from twofold.data.dataset import ArrayDataset, checked_split
from twofold.data.idx import read_idx
from twofold.data.locate import Root, folders, home, obtain
from twofold.data.remote import Progress, Remote

MAX_BYTES = 1 << 28  # of one file; the largest of these has 47 million bytes
PREFIX = {"train": "train", "test": "t10k"}
DIGIT_NAMES = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class _Family(NamedTuple):
    """One data set of this form."""

    title: str
    mirrors: tuple[str, ...]
    sha256: dict[str, str]  # of the decompressed files
    below: tuple[str, ...]  # subfolders where other tools put the files
    system: tuple[str, ...]
    classes: tuple[str, ...]


_MNIST = _Family(
    "MNIST",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    ("mnist", "MNIST/raw"),
    (),
    DIGIT_NAMES,
)
_FASHION = _Family(
    "Fashion-MNIST",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    ("fashion-mnist", "FashionMNIST/raw"),
    ("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
    GARMENTS,
)


def mnist(
    split: str = "train", *, root: Root = None, download: bool = True, progress: Progress | None = None
) -> ArrayDataset:
    """MNIST's handwritten digits (LeCun, Cortes, Burges): images uint8 (N, 1, 28, 28), white on black.

    ``split`` is "train" (60,000) or "test" (10,000). The IDX files, plain or .gz, are looked for in ``root`` (and its
    ``mnist`` and ``MNIST/raw``) and in $TWOFOLD_HOME/data/mnist; else downloaded there (or into ``root``), verified.
    FormatError for a damaged file, DataError if there is none to be had.
    """
    return _load("mnist", _MNIST, split, root, download, progress)


def fashion_mnist(
    split: str = "train", *, root: Root = None, download: bool = True, progress: Progress | None = None
) -> ArrayDataset:
    """Fashion-MNIST's articles of clothing (Xiao, Rasul, Vollgraf, 2017, MIT licence): images uint8 (N, 1, 28, 28).

    As ``mnist``, and also found in /usr/share/datasets/fashion-mnist, from Debian's package dataset-fashion-mnist.
    """
    return _load("fashion-mnist", _FASHION, split, root, download, progress)


def _load(
    name: str, family: _Family, split: str, root: Root, download: bool, progress: Progress | None
) -> ArrayDataset:
    prefix = PREFIX[checked_split(name, split, tuple(PREFIX))]
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    remotes = [
        Remote(f"{n}.gz", tuple(f"{mirror}{n}.gz" for mirror in family.mirrors), family.sha256[n], MAX_BYTES)
        for n in names
    ]
    target = home(name) if root is None else Path(root).expanduser()
    places = folders(name, root, family.below, family.system)
    image_path, label_path = obtain(family.title, remotes, places, target, download, progress)
    return _read(image_path, label_path, family.classes)


def _read(image_path: Path, label_path: Path, classes: tuple[str, ...]) -> ArrayDataset:
    images = read_idx(image_path, ndim=3, max_bytes=MAX_BYTES)
    labels = read_idx(label_path, ndim=1, max_bytes=MAX_BYTES)
    if len(images) != len(labels):
        raise FormatError(f"{image_path} has {len(images)} images, {label_path} {len(labels)} labels; expected as many")
    for path, array in ((image_path, images), (label_path, labels)):
        if array.dtype != "uint8":
            raise FormatError(f"{path}: elements are {array.dtype}; expected unsigned bytes (type 08)")
    if labels.max() >= len(classes):
        raise FormatError(f"{label_path}: label {labels.max()}; expected 0 to {len(classes) - 1}")
    return ArrayDataset(images[:, None], labels, classes, source=str(image_path.parent))
