"""CIFAR-10 and CIFAR-100 from files of the published form."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest

from twofold import data
from twofold.base.errors import ArgumentError, DataError, FormatError, UnsafeFileError
from twofold.data import cifar as cifar_module

ROWS = np.random.default_rng(0).integers(0, 256, (20, 3074), np.uint8)
ROWS[:, 0] %= 20
ROWS[:, 1] = np.arange(80, 100)
TEN = np.delete(ROWS, 1, axis=1)
TEN[:, 0] %= 10
FILES10 = [f"data_batch_{i}.bin" for i in range(1, 6)]


def write_ten(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(FILES10):
        (folder / name).write_bytes(TEN[4 * i : 4 * i + 4].tobytes())


@pytest.mark.parametrize("below", [".", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_from_its_files(tmp_path, below):
    write_ten(tmp_path / below)
    train = data.cifar10(root=tmp_path, download=False)
    assert train.images.shape == (20, 3, 32, 32) and train.images.dtype == np.uint8
    assert (train.labels == TEN[:, 0]).all()
    assert train.images[3, 2, 1, 5] == TEN[3, 1 + 2 * 1024 + 32 + 5]  # blue, row 1, column 5
    assert train.classes[:3] == ("airplane", "automobile", "bird")


@pytest.mark.parametrize("labels, column, count", [("fine", 1, 100), ("coarse", 0, 20)])
def test_cifar100_has_fine_and_coarse_labels(tmp_path, labels, column, count):
    (tmp_path / "test.bin").write_bytes(ROWS.tobytes())
    test = data.cifar100("test", root=tmp_path, download=False, labels=labels)
    assert (test.labels == ROWS[:, column]).all() and test.num_classes == count
    assert (test.images.reshape(20, -1) == ROWS[:, 2:]).all()


def test_class_names_are_a_hundred_in_twenty_groups():
    fine, coarse = cifar_module.CIFAR100_FINE, cifar_module.CIFAR100_COARSE
    assert len(set(fine)) == 100 and list(fine) == sorted(fine)
    assert len(set(coarse)) == 20 and list(coarse) == sorted(coarse)


def test_the_archive_is_unpacked_once(tmp_path):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i, name in enumerate(FILES10):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = 4 * 3073
            tar.addfile(info, io.BytesIO(TEN[4 * i : 4 * i + 4].tobytes()))
    first = data.cifar10(root=tmp_path, download=False)
    archive.write_bytes(b"")
    assert (data.cifar10(root=tmp_path, download=False).images == first.images).all() and len(first) == 20


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "has 0 bytes; expected a multiple of 3,073"),
        (TEN.tobytes()[:-1], "has 61,459 bytes"),
        (ROWS[:, :-1].tobytes()[:3073] + b"\x0a" + bytes(3072), "class label [1-9][0-9]*; expected 0 to 9"),
    ],
)
def test_files_of_another_kind(tmp_path, content, words):
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(FormatError, match=f"test_batch.bin.*{words}"):
        data.cifar10("test", root=tmp_path)


def test_the_pickled_version_is_refused_and_not_opened(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"labels": []}))
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(UnsafeFileError, match=r"cifar-10-batches-py.*pickles.*binary version, https://.*put it into"):
        data.cifar10("test", root=tmp_path, download=False)


def test_nothing_found(tmp_path):
    with pytest.raises(DataError, match=r"(?s)CIFAR-100.*cifar-100-binary\.tar\.gz.*Looked in"):
        data.cifar100(root=tmp_path, download=False)
    with pytest.raises(ArgumentError, match="'medium'; expected 'fine' or 'coarse'"):
        data.cifar100(labels="medium")
