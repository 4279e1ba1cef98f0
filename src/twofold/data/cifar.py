"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32x32 (A. Krizhevsky, 2009), from the binary version.

A record is the label (CIFAR-100: the coarse label, then the fine one) and 3,072 bytes: red, green, blue planes.
The Python version is a pickle, which may run code when read: it is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from twofold.base.errors import ArgumentError, DataError, FormatError, UnsafeFileError
from twofold.data.cifar_names import CIFAR10, CIFAR100_COARSE, CIFAR100_FINE
from twofold.data.dataset import ArrayDataset, checked_split
from twofold.data.locate import Root, bring, find_all, folders, home, missing
from twofold.data.remote import Progress, Remote
from twofold.data.streams import open_bounded

PIXELS = 3 * 32 * 32
MAX_BYTES = 1 << 28  # of one file, and of the archive unpacked; published: 153.7 million for train.bin, 185 unpacked


class _Family(NamedTuple):
    """One of the two."""

    title: str
    archive: Remote
    folder: str  # inside the archive
    files: dict[str, tuple[str, ...]]
    labels: tuple[tuple[str, tuple[str, ...]], ...]  # label bytes of a record: which, and their names
    python: tuple[str, ...]  # files of the Python version, to say why they are not read


_CIFAR10 = _Family(
    "CIFAR-10",
    Remote(
        "cifar-10-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        MAX_BYTES,
        as_it_comes=True,
    ),
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    (("class", CIFAR10),),
    ("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1"),
)
_CIFAR100 = _Family(
    "CIFAR-100",
    Remote(
        "cifar-100-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        MAX_BYTES,
        as_it_comes=True,
    ),
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    (("coarse", CIFAR100_COARSE), ("fine", CIFAR100_FINE)),
    ("cifar-100-python.tar.gz", "cifar-100-python"),
)


def cifar10(
    split: str = "train", *, root: Root = None, download: bool = True, progress: Progress | None = None
) -> ArrayDataset:
    """CIFAR-10: images uint8 (N, 3, 32, 32), RGB; ten classes; ``split`` "train" (50,000) or "test" (10,000).

    ``cifar-10-binary.tar.gz``, or the .bin files from it, are looked for in ``root`` and $TWOFOLD_HOME/data/cifar10;
    else downloaded there (into ``root`` if given), verified and unpacked. FormatError for a damaged file, DataError if
    there is none, UnsafeFileError if there is only the Python version, whose pickles may run code.
    """
    return _load("cifar10", _CIFAR10, "class", split, root, download, progress)


def cifar100(
    split: str = "train",
    *,
    root: Root = None,
    download: bool = True,
    labels: str = "fine",
    progress: Progress | None = None,
) -> ArrayDataset:
    """CIFAR-100: as ``cifar10`` from ``cifar-100-binary.tar.gz``; ``labels`` "fine" (100 classes) or "coarse" (20)."""
    if labels not in dict(_CIFAR100.labels):
        raise ArgumentError(f"cifar100: labels={labels!r}; expected 'fine' or 'coarse'")
    return _load("cifar100", _CIFAR100, labels, split, root, download, progress)


def _load(
    name: str, family: _Family, kind: str, split: str, root: Root, download: bool, progress: Progress | None
) -> ArrayDataset:
    files = family.files[checked_split(name, split, tuple(family.files))]
    target = home(name) if root is None else Path(root).expanduser()
    places = folders(name, root, (name, family.folder, f"{name}/{family.folder}"))
    paths = find_all(places, files) or _unpack(family, files, places, target, download, progress)
    images, labels = zip(*(_read(path, family, kind) for path in paths))
    classes = dict(family.labels)[kind]
    return ArrayDataset(np.concatenate(images), np.concatenate(labels), classes, source=str(paths[0].parent))


def _unpack(
    family: _Family, files: tuple[str, ...], places: list[Path], target: Path, download: bool, progress: Progress | None
) -> list[Path]:
    """The files out of the archive, which is found or fetched."""
    path = _archive(family, places, target, download, progress)
    from twofold.data.archive import extract_known

    try:
        return extract_known(path, files, path.parent / family.folder, MAX_BYTES)
    except OSError as error:
        raise DataError(
            f"{path} cannot be unpacked beside itself: {error}; copy it to a folder that can be written"
        ) from error


def _archive(family: _Family, places: list[Path], target: Path, download: bool, progress: Progress | None) -> Path:
    """The archive, found or fetched; if there is none but the Python version, the reason why that is not read."""
    if found := find_all(places, [family.archive.name]):
        return found[0]
    try:
        if download:
            return bring(family.archive, target, progress)
        raise missing(family.title, [family.archive.name], places, target)
    except DataError as error:
        python = next((p for f in places for n in family.python if (p := f / n).exists()), None)
        if python is None:
            raise
        raise UnsafeFileError(
            f"{python} is the Python version of {family.title}: pickles, which may run code when read, are refused. "
            f"Fetch the binary version, {family.archive.urls[0]}, and put it into {target}"
        ) from error


def _read(path: Path, family: _Family, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one file."""
    head = len(family.labels)
    record = head + PIXELS
    with open_bounded(path, MAX_BYTES) as stream:
        data = stream.read()
    if not data or len(data) % record:
        raise FormatError(
            f"{path}: has {len(data):,} bytes; expected a multiple of {record:,}, the size of a {family.title} record"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    for column, (label, names) in enumerate(family.labels):
        if (highest := int(rows[:, column].max())) >= len(names):
            raise FormatError(
                f"{path}: {label} label {highest}; expected 0 to {len(names) - 1}: not a {family.title} file"
            )
    column = [label for label, _ in family.labels].index(kind)
    return rows[:, head:].reshape(-1, 3, 32, 32), rows[:, column]
