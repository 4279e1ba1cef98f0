"""Names that differ between files and models for reasons of history: one row per reason, tried in this order.

A row applies to an entry only if the model has no such name and does have the new one.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Rename(NamedTuple):
    """What the row is about, the pattern found, and what replaces it."""

    why: str
    pattern: re.Pattern[str]
    replacement: str


RENAMES = (
    Rename("DataParallel's prefix 'module.'", re.compile(r"^module\."), ""),
    Rename("torch.compile's prefix '_orig_mod.'", re.compile(r"^_orig_mod\."), ""),
    Rename("Lightning's prefix 'model.'", re.compile(r"^model\."), ""),
    # torchvision's published DenseNet files keep the layer names of early 2017: denselayer1.norm.1.weight
    Rename("DenseNet's old 'norm.1'", re.compile(r"(?<=\.)(norm|relu|conv)\.([12])(?=\.)"), r"\1\2"),
    # batch norm was written (gamma, beta) by Keras and TensorFlow exporters
    Rename("batch norm's 'gamma'", re.compile(r"\.gamma$"), ".weight"),
    Rename("batch norm's 'beta'", re.compile(r"\.beta$"), ".bias"),
)

# Entries a file may lack: files before PyTorch 0.4.1 have no batch counter; a model then keeps its own.
MAY_BE_ABSENT = ("num_batches_tracked",)


def candidates(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """The names that ``name`` may stand for, each with the reasons, one rename after another."""
    found: list[tuple[str, tuple[str, ...]]] = [(name, ())]
    for row in RENAMES:
        found += [
            (renamed, (*why, row.why))
            for current, why in found
            if (renamed := row.pattern.sub(row.replacement, current)) != current
        ]
    return found
