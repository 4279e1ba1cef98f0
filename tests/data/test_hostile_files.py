"""Damaged and hostile files: an error that names the file, never a crash, a hang, or memory without cause."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import tracemalloc
import zlib

import numpy as np
import pytest

from twofold import data
from twofold.base.errors import FormatError, UnsafeFileError
from twofold.data.archive import extract_known

Image = pytest.importorskip("PIL.Image")


def idx_bytes(shape, payload=None, code=8):
    count = int(np.prod(shape)) if payload is None else payload
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape) + bytes(range(256)) * (count // 256 + 1)


GOOD_IDX = idx_bytes((4, 5, 6))[: 16 + 120]


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "truncated|can hold 0"),
        (b"\x00\x00\x08", "IDX header"),
        (b"PK\x03\x04" + GOOD_IDX, "begins with 50 4b 03 04; expected an IDX header"),
        (b"\x00\x00\x08\x00", "begins with 00 00 08 00"),
        (b"\x00\x00\x08\x09" + bytes(36), "begins with 00 00 08 09"),
        (b"\x00\x00\x07\x01" + bytes(36), "begins with 00 00 07 01"),
        (GOOD_IDX[:10], "IDX sizes"),
        (GOOD_IDX[:-1], "claims 120 bytes.*can hold|truncated"),
        (GOOD_IDX + b"!", "after its declared end"),
        (idx_bytes((2**32 - 1,) * 8, 10), "at most 2,147,483,648 are read"),
        (idx_bytes((1000, 1000, 1000), 10), "can hold"),
        (idx_bytes((0, 28, 28), 0)[:16], "empty"),
        (gzip.compress(GOOD_IDX, mtime=0)[:-12], "cannot be read|truncated"),
        (gzip.compress(GOOD_IDX, mtime=0)[:-2] + b"zz", "cannot be read"),
        (gzip.compress(GOOD_IDX[:50], mtime=0), "truncated: IDX shape"),
        (b"\x1f\x8b", "cannot be read"),
        (b"\x1f\x8b" + b"junk" * 9, "cannot be read"),
    ],
)
def test_idx_files_that_are_none(tmp_path, content, words):
    path = tmp_path / "bad-idx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"(?s)bad-idx.*({words})"):
        data.read_idx(path)


def test_the_number_of_axes_is_checked(tmp_path):
    (tmp_path / "x").write_bytes(GOOD_IDX)
    with pytest.raises(FormatError, match="has 3 axes; expected 1"):
        data.read_idx(tmp_path / "x", ndim=1)


@pytest.mark.parametrize("claimed", [2_000_000_000, 900_000_000])
def test_memory_follows_what_is_there_and_not_what_is_claimed(tmp_path, claimed):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx_bytes((claimed,), 3_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            data.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def mutations(good: bytes, count: int, seed: int):
    """``good`` with bytes changed, cut, doubled, inserted: the same ones each time."""
    rng = random.Random(seed)
    for _ in range(count):
        out = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(out)) if out else 0
            match rng.randrange(5):
                case 0:
                    out[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    out[at:] = b""
                case 2:
                    out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
                case 3:
                    out[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 4:
                    out[at:at] = out[: rng.randrange(40)]
        yield bytes(out)


def survive(read, path, contents) -> int:
    """How many of ``contents`` were refused; anything raised but FormatError fails the test."""
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            read(path)
        except FormatError as error:
            assert path.name in str(error)
            refused += 1
    return refused


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_mutated_idx(tmp_path, pack):
    assert survive(data.read_idx, tmp_path / "x", mutations(pack(GOOD_IDX), 1500, 1)) > 500


def photo(format_name: str) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).save(out, format_name)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much; here only what is raised counts
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_mutated_images(tmp_path, kind):
    assert survive(data.read_image, tmp_path / "x", mutations(photo(kind), 200, 2)) > 10


def cifar_bytes(count=7):
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 256, (count, 3073), np.uint8)
    rows[:, 0] = rng.integers(0, 10, count)
    return rows.tobytes()


def test_mutated_cifar(tmp_path):
    def read(path):
        data.cifar10("test", root=tmp_path, download=False)

    assert survive(read, tmp_path / "test_batch.bin", mutations(cifar_bytes(), 200, 4)) > 50


def tar_bytes(members, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_mutated_archives(tmp_path, mode):
    good = tar_bytes([("d/readme", b"hello", FILE), ("d/test_batch.bin", cifar_bytes(3), FILE)], mode)
    read = lambda path: extract_known(path, ["test_batch.bin"], tmp_path / "out", 1 << 20)
    assert survive(read, tmp_path / "x.tar", mutations(good, 300, 5)) > 50


def test_an_archive_writes_nothing_but_the_known_names_into_the_folder(tmp_path):
    archive, out = tmp_path / "x.tar.gz", tmp_path / "below" / "out"
    members = [
        ("../../escaped", b"1", FILE),
        ("/absolute", b"2", FILE),
        ("test_batch.bin", b"", LINK),
        ("test_batch.bin", b"", HARD),
        ("../../deep/test_batch.bin", b"content", FILE),
    ]
    archive.write_bytes(tar_bytes(members))
    assert extract_known(archive, ["test_batch.bin"], out, 1 << 20)[0].read_bytes() == b"content"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["below", "out", "test_batch.bin", "x.tar.gz"]


def test_an_archive_bomb_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(tar_bytes([("a.bin", bytes(5_000_000), FILE)]))
    with pytest.raises(UnsafeFileError, match="x: "):
        extract_known(tmp_path / "x", ["a.bin"], tmp_path / "out", 1_000_000)
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_without_the_file(tmp_path):
    (tmp_path / "x").write_bytes(tar_bytes([("other", b"", FILE)]))
    with pytest.raises(FormatError, match=r"has no file a\.bin"):
        extract_known(tmp_path / "x", ["a.bin"], tmp_path / "out", 1000_000)


@pytest.mark.parametrize("side", [300, 40_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, side):
    """A PNG whose header claims side x side pixels over almost no data."""
    good = photo("PNG")
    header = b"IHDR" + struct.pack(">II", side, side) + good[24:29]
    bad = good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]
    (tmp_path / "bomb.png").write_bytes(bad)
    with pytest.raises(UnsafeFileError, match=r"bomb\.png"):
        data.read_image(tmp_path / "bomb.png", max_pixels=50_000)
