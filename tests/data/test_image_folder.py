"""Folders of images."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from twofold import data
from twofold.base.errors import ArgumentError, DataError, FormatError, MissingDependencyError
from twofold.data import transforms as T

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """train/{cat,dog}: pictures of several kinds and sizes whose red channel is 10, 20, 30, 40."""
    for i, name in enumerate(("cat/a.png", "cat/deep/b.JPG", "dog/c.bmp", "dog/d.webp")):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((20 + i, 30, 3), (10 * (i + 1), 0, 200), np.uint8)
        options = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(pixels).save(path, **options)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path / "train"


def test_classes_and_samples_come_in_order(folder):
    images = data.ImageFolder(folder)
    assert images.classes == ("cat", "dog") and len(images) == 4
    for i, (image, label) in enumerate(images[j] for j in range(4)):
        assert image.shape == (3, 20 + i, 30) and image.dtype == np.uint8 and label == i // 2
        assert abs(int(image[0, 5, 5]) - 10 * (i + 1)) < 4


def test_grey_mode_has_one_channel(folder):
    assert data.ImageFolder(folder, mode="L")[0][0].shape == (1, 20, 30)


def test_through_the_loader(folder):
    loader = data.DataLoader(data.ImageFolder(folder), 4, transform=T.RandomResizedCrop(8), num_workers=2, numpy=True)
    ((images, labels),) = loader
    assert images.shape == (4, 3, 8, 8) and images.dtype == np.float32 and labels.tolist() == [0, 0, 1, 1]


def test_a_damaged_image_is_named_with_its_sample(folder):
    (folder / "dog" / "c.bmp").write_bytes(b"BM not really")
    loader = data.DataLoader(data.ImageFolder(folder), 1, transform=T.Resize((4, 4)), num_workers=1, numpy=True)
    with pytest.raises(FormatError, match=r"sample 2: .*c\.bmp: cannot be read as an image"):
        list(loader)


def test_by_name_with_a_folder_for_each_split(folder):
    assert len(data.load("image-folder", "train", folder.parent)) == 4
    with pytest.raises(DataError, match="no subfolder test or val or validation"):
        data.load("image-folder", "test", folder.parent)
    folder.rename(folder.with_name("val"))
    assert len(data.load("image-folder", "test", folder.parent)) == 4
    with pytest.raises(DataError, match="no folder named"):
        data.load("image-folder")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        data.ImageFolder(tmp_path / "gone")
    with pytest.raises(DataError, match="no subfolders"):
        data.ImageFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images"):
        data.ImageFolder(tmp_path)


def test_exif_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert data.read_image(tmp_path / "x.jpg").shape == (3, 30, 20)


def test_sixteen_bits_are_scaled_and_other_numbers_refused(tmp_path):
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert data.read_image(tmp_path / "x.png", mode="L").tolist() == [[[0, 1, 255]]]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(FormatError, match=r"x\.tiff: pixels are 32-bit"):
        data.read_image(tmp_path / "x.tiff")


def test_modes_other_formats_and_missing_files(tmp_path):
    with pytest.raises(ArgumentError, match="'CMYK'"):
        data.read_image("x.png", mode="CMYK")
    with pytest.raises(FileNotFoundError):
        data.read_image(tmp_path / "gone.png")
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(FormatError, match=r"x\.png: cannot be read as an image"):
        data.read_image(tmp_path / "x.png")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"twofold\[images\]"):
        data.read_image(tmp_path / "x.png")
