"""Images in folders, one folder a class, read when they are asked for."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np

from twofold.base.errors import DataError
from twofold.data.dataset import Dataset, checked_index
from twofold.data.images import MAX_PIXELS, SUFFIXES, read_image


class ImageFolder(Dataset):
    """``ROOT/class/**/image.jpg``: the classes are the subfolders' names in order, images uint8 (C, H, W).

    ``mode`` is "RGB" or "L" (grey). Folders are walked without following links to folders; hidden files and suffixes
    that are no image's are passed over. Images differ in size: bring them to one with the loader's ``transform``. Needs
    Pillow (extra ``images``) when a sample is read. DataError if there are no classes, or one has no images.
    """

    def __init__(self, root: str | os.PathLike, *, mode: str = "RGB", max_pixels: int = MAX_PIXELS):
        self.root, self.mode, self.max_pixels = Path(root).expanduser(), mode, max_pixels
        if not self.root.is_dir():
            raise DataError(f"ImageFolder: {self.root} is not a folder; expected one with a subfolder for each class")
        self.classes = tuple(sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")))
        if not self.classes:
            raise DataError(f"ImageFolder: {self.root} has no subfolders; expected one for each class, with its images")
        self.samples: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            found = _images_below(self.root / name)
            if not found:
                raise DataError(
                    f"ImageFolder: {self.root / name} has no images; expected {' '.join(sorted(SUFFIXES))}; "
                    "remove the folder, or put the class's images there"
                )
            self.samples.extend((path, label) for path in found)

    def in_mode(self, mode: str) -> ImageFolder:
        """The same images, read as "RGB" or "L" (grey)."""
        other = copy.copy(self)
        other.mode = mode
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self.samples[checked_index(index, len(self))]
        return read_image(path, self.mode, self.max_pixels), label

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}, {len(self)} images, {self.num_classes} classes)"


def _images_below(folder: Path) -> list[Path]:
    found = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(place, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    return sorted(found)
