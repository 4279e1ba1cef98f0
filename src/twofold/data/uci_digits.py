"""The digits that come with the package: 1,797 real scanned ones of 8x8 (see digits/LICENSE.md)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from twofold.base import rng
from twofold.data.dataset import ArrayDataset, checked_split

_LEVELS = 16  # grey levels go from 0 to 16
_SPLIT_SEED = 1998


def digits(split: str = "train", *, root: object = None, download: bool = False) -> ArrayDataset:
    """Handwritten digits, images float32 (N, 1, 8, 8) in 0..1 (multiples of 1/16), white on black; no download.

    ``split``: "train" (1,438), "test" (359), a fixed held-out fifth, drawn from each digit by a seeded permutation; or
    "all" (1,797, in the file's order). The same 13 people wrote both parts, so that accuracy on "test" says nothing
    about new writers. ``root`` and ``download`` are ignored; they are there so that all data sets are called alike.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0.

    >>> from twofold.data import digits
    >>> len(digits("train")), len(digits("test")), digits().images.shape[1:]
    (1438, 359, (1, 8, 8))
    """
    checked_split("digits", split, ("train", "test", "all"))
    images, labels, held_out = _table()
    chosen = slice(None) if split == "all" else held_out if split == "test" else ~held_out
    # a copy each time: whoever changes the images changes their own
    return ArrayDataset(images[chosen].copy(), labels[chosen].copy(), tuple("0123456789"), source="twofold")


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, and which are held out."""
    import gzip

    packed = (Path(__file__).parent / "digits" / "digits.csv.gz").read_bytes()
    rows = np.loadtxt(gzip.decompress(packed).decode("ascii").splitlines(), np.uint8, delimiter=",")
    images, labels = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.float32) / _LEVELS, rows[:, 64].astype(np.int64)
    order = rng.permutation(_SPLIT_SEED, 0, len(rows))
    held_out = np.zeros(len(rows), bool)
    for digit in range(10):
        members = order[labels[order] == digit]
        held_out[members[: round(len(members) / 5)]] = True
    return images, labels, held_out
