"""Data sets, the loader that makes batches of them, and the transforms of images.

>>> from twofold import data
>>> train = data.DataLoader(data.digits("train"), batch_size=64, shuffle=True, numpy=True)
>>> len(train)
23
"""

from __future__ import annotations

from twofold.data import transforms
from twofold.data.cifar import cifar10, cifar100
from twofold.data.dataset import ArrayDataset, Dataset, Subset
from twofold.data.folder import ImageFolder
from twofold.data.idx import read_idx, write_idx
from twofold.data.images import read_image
from twofold.data.loader import DataLoader
from twofold.data.mnist_family import fashion_mnist, mnist
from twofold.data.registry import info, load, names
from twofold.data.uci_digits import digits

__all__ = [
    "ArrayDataset",
    "DataLoader",
    "Dataset",
    "ImageFolder",
    "Subset",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "info",
    "load",
    "mnist",
    "names",
    "read_idx",
    "read_image",
    "transforms",
    "write_idx",
]
