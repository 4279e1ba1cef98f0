"""Data sets in memory: what they hold, what they refuse, and finding files."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twofold import data
from twofold.base.errors import ArgumentError, DataError, DtypeError, FormatError, IndexRangeError, ShapeError
from twofold.data.mnist_family import _FASHION, _MNIST

IDX_SETS = {"mnist": data.mnist, "fashion-mnist": data.fashion_mnist}
DEBIAN = "/usr/share/datasets/fashion-mnist"


def write_family(folder, *, count=12, prefix="train", compress=False, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8) if labels is None else labels
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{kind}-ubyte"
        data.write_idx(path, array)
        if compress:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return images, labels


def test_digits_are_the_1797_real_ones_split_by_class():
    train, test, everything = (data.digits(s) for s in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1438, 359, 1797)
    assert train.images.dtype == np.float32 and train.images.shape[1:] == (1, 8, 8)
    assert everything.images.min() == 0 and everything.images.max() == 1
    assert everything.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    # the file's first digit, a zero (grey levels 0..16)
    assert (everything.images[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert (np.bincount(test.labels) == np.round(np.bincount(everything.labels) / 5)).all()
    rows = {image.tobytes() for image in train.images} | {image.tobytes() for image in test.images}
    assert rows == {image.tobytes() for image in everything.images}


def test_digits_give_everyone_their_own_copy():
    data.digits().images[:] = 7
    assert data.digits().images.max() == 1


@pytest.mark.parametrize("name", IDX_SETS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("split, prefix", [("train", "train"), ("test", "t10k")])
def test_idx_sets_come_from_the_named_folder(tmp_path, name, compress, split, prefix):
    images, labels = write_family(tmp_path / "d", prefix=prefix, compress=compress)
    found = IDX_SETS[name](split, root=tmp_path / "d", download=False)
    assert (found.images == images[:, None]).all() and (found.labels == labels).all()
    assert found.images.dtype == np.uint8 and found.labels.dtype == np.int64
    assert found.num_classes == 10 and found.source == str(tmp_path / "d")


def test_idx_sets_come_from_twofold_home_and_from_torchvisions_folder(tmp_path):
    write_family(tmp_path / "home" / "data" / "mnist", count=11)
    assert len(data.mnist(download=False)) == 11
    write_family(tmp_path / "tv" / "MNIST" / "raw", count=13)
    assert len(data.mnist(root=tmp_path / "tv", download=False)) == 13


def test_missing_files_say_where_to_put_them(tmp_path):
    with pytest.raises(DataError, match=r"(?s)MNIST.*train-images-idx3-ubyte.*Put the files into .*empty"):
        data.mnist(root=tmp_path / "empty", download=False)


def test_images_and_labels_must_fit_each_other(tmp_path):
    write_family(tmp_path, labels=np.zeros(5, np.uint8))
    with pytest.raises(FormatError, match=r"12 images.*5 labels"):
        data.mnist(root=tmp_path)
    write_family(tmp_path, labels=np.full(12, 10, np.uint8))
    with pytest.raises(FormatError, match="label 10; expected 0 to 9"):
        data.mnist(root=tmp_path)


@pytest.mark.skipif(not Path(DEBIAN).is_dir(), reason="package not installed")
def test_debians_fashion_mnist_is_the_published_one():
    from twofold.data.fetch import content_sha256

    for name, digest in _FASHION.sha256.items():
        assert content_sha256(f"{DEBIAN}/{name}.gz", 1 << 28) == digest
    test = data.fashion_mnist("test", download=False)
    assert test.images.shape == (10000, 1, 28, 28) and (np.bincount(test.labels) == 1000).all()
    assert test.classes[test.labels[0]] == "Ankle boot"


def test_no_two_published_files_share_a_digest():
    digests = [*_MNIST.sha256.values(), *_FASHION.sha256.values()]
    assert len(set(digests)) == 8 and all(len(bytes.fromhex(d)) == 32 for d in digests)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "image-folder"])
def test_an_unknown_split_is_refused(name, tmp_path):
    with pytest.raises(ArgumentError, match="'valid'"):
        data.load(name, "valid", tmp_path)


def test_registry():
    assert data.names() == ["cifar10", "cifar100", "digits", "fashion-mnist", "image-folder", "mnist"]
    assert data.info("Fashion_MNIST") is data.info("fashion-mnist")
    assert len(data.load("digits", "test")) == 359
    with pytest.raises(ArgumentError, match="'imagenet' is unknown; expected one of cifar10"):
        data.load("imagenet")


def test_registry_statistics_of_digits_are_those_of_its_training_images():
    info, images = data.info("digits"), data.digits().images.astype(np.float64)
    np.testing.assert_allclose([images.mean(), images.std()], [*info.mean, *info.std], atol=2e-4)


def test_array_dataset_reads_and_subsets():
    images = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
    full = data.ArrayDataset(images, [0, 1, 2, 0, 1, 2])
    assert full.num_classes == 3 and full[-1][1] == 2
    part = full.subset([4, 0])
    assert part.labels.tolist() == [1, 0] and part.num_classes == 3
    assert (part[0][0] == images[4]).all()


@pytest.mark.parametrize(
    "images, labels, classes, error, words",
    [
        (np.zeros((3, 1, 2, 2)), [0, 1], None, ShapeError, r"\(3, 1, 2, 2\), labels \(2,\)"),
        (np.zeros((2, 1, 2, 2)), [0, 5], ("a", "b"), IndexRangeError, "label 5 at position 1; expected 0 to 1"),
        (np.zeros((2, 1, 2, 2)), [0, -1], None, IndexRangeError, "label -1"),
        (np.zeros((2, 1, 2, 2)), ["x", "y"], None, DtypeError, "labels have dtype"),
        (np.float32(1), 1, None, ShapeError, "same number of samples"),
    ],
)
def test_array_dataset_refuses(images, labels, classes, error, words):
    with pytest.raises(error, match=words):
        data.ArrayDataset(images, labels, classes)


def test_index_out_of_range():
    with pytest.raises(IndexRangeError, match="sample 1438 of a data set with 1438"):
        data.digits()[1438]
    with pytest.raises(IndexRangeError):
        data.digits().subset([0, 2000])


def test_subset_of_any_dataset():
    class Squares(data.Dataset):
        classes = ("a",)

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return np.full((1, 1, 1), index**2, np.float32), 0

    part = Squares().subset([3, -1])
    assert [part[i][0].item() for i in range(2)] == [9, 81] and part.num_classes == 1


def test_write_idx_refuses_what_idx_has_not(tmp_path):
    with pytest.raises(ArgumentError, match="int64"):
        data.write_idx(tmp_path / "x", np.zeros(3, np.int64))


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_keeps_every_dtype_it_has(tmp_path, dtype):
    array = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    data.write_idx(tmp_path / "x", array)
    back = data.read_idx(tmp_path / "x")
    assert back.dtype == array.dtype and (back == array).all()
    assert (tmp_path / "x").read_bytes()[4:12] == struct.pack(">II", 3, 4)


def test_importing_is_light():
    code = (
        "import sys, twofold.data; print([m for m in ('PIL', 'urllib.request', 'tarfile', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
