"""Downloads: verified, resumed, from the next mirror, and clear when they fail."""

from __future__ import annotations

import gzip
import hashlib
import os

import numpy as np
import pytest

from twofold import data
from twofold.base.errors import DataError
from twofold.data import mnist_family
from twofold.data.fetch import fetch
from twofold.data.remote import Remote

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
PACKED = gzip.compress(CONTENT, mtime=0)


def remote(*urls, content=CONTENT, limit=1 << 20):
    return Remote("file.gz", urls, hashlib.sha256(content).hexdigest(), limit)


def left_over(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_comes_whole_and_its_progress_is_told(mirror, tmp_path):
    mirror.content["/f"] = PACKED
    told = []
    path = fetch(remote(f"{mirror.url}/f"), tmp_path / "new", lambda *a: told.append(a))
    assert path.read_bytes() == PACKED and left_over(path.parent) == ["file.gz"]
    assert told[-1] == ("file.gz", len(PACKED), len(PACKED))


def test_another_compression_of_the_same_content_is_right_and_so_is_none(mirror, tmp_path):
    mirror.content |= {"/a": gzip.compress(CONTENT, 1), "/b": CONTENT}
    for path in ("/a", "/b"):
        assert fetch(remote(mirror.url + path), tmp_path).read_bytes() == mirror.content[path]


def test_an_archive_is_held_to_the_digest_of_the_file_itself(mirror, tmp_path):
    mirror.content |= {"/a": PACKED, "/b": gzip.compress(CONTENT, 1)}
    packed = remote(f"{mirror.url}/b", f"{mirror.url}/a", content=PACKED)._replace(as_it_comes=True)
    assert fetch(packed, tmp_path).read_bytes() == PACKED


def test_a_broken_line_is_resumed_where_it_broke(mirror, tmp_path):
    mirror.content["/f"] = PACKED
    mirror.break_after["/f"] = 100_000
    path = fetch(remote(f"{mirror.url}/f"), tmp_path)
    assert path.read_bytes() == PACKED
    assert mirror.requests == [("/f", None), ("/f", "bytes=100000-")]


def test_a_later_call_resumes_what_an_earlier_one_left(mirror, tmp_path):
    mirror.content["/f"] = PACKED
    (tmp_path / ".file.gz.0.part").write_bytes(PACKED[:5000])
    assert fetch(remote(f"{mirror.url}/f"), tmp_path).read_bytes() == PACKED
    assert mirror.requests == [("/f", "bytes=5000-")]


def test_a_complete_part_is_used_and_a_wrong_one_fetched_anew(mirror, tmp_path):
    mirror.content["/f"] = PACKED
    part = tmp_path / ".file.gz.0.part"
    part.write_bytes(PACKED)
    assert fetch(remote(f"{mirror.url}/f"), tmp_path).read_bytes() == PACKED
    part.write_bytes(b"x" * 1000)
    assert fetch(remote(f"{mirror.url}/f"), tmp_path).read_bytes() == PACKED
    assert mirror.requests[-2:] == [("/f", "bytes=1000-"), ("/f", None)]


def test_a_server_without_ranges_is_read_from_the_start(mirror, tmp_path):
    mirror.content["/f"], mirror.ranges = PACKED, False
    (tmp_path / ".file.gz.0.part").write_bytes(b"y" * 5000)
    assert fetch(remote(f"{mirror.url}/f"), tmp_path).read_bytes() == PACKED


def test_the_next_mirror_serves_when_one_is_gone_or_wrong(mirror, tmp_path):
    mirror.content |= {"/wrong": gzip.compress(b"another file"), "/not-gzip": b"<html>sign in</html>", "/right": PACKED}
    urls = [f"{mirror.url}/{p}" for p in ("gone", "wrong", "not-gzip", "right")]
    path = fetch(remote("http://127.0.0.1:9/closed", *urls), tmp_path)
    assert path.read_bytes() == PACKED
    assert left_over(tmp_path) == ["file.gz"]


def test_when_all_fail_the_error_tells_each_reason_and_what_to_do(mirror, tmp_path):
    mirror.content["/wrong"] = b"something else"
    with pytest.raises(DataError) as caught:
        fetch(remote("http://127.0.0.1:9/x", f"{mirror.url}/gone", f"{mirror.url}/wrong"), tmp_path)
    text = str(caught.value)
    for words in ("no connection", "HTTP 404", "content has SHA-256", f"put it into {tmp_path}"):
        assert words in text
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("announce", [None, 0, 10**15])
def test_more_than_expected_is_not_downloaded(mirror, tmp_path, announce):
    mirror.content["/f"], mirror.announce = b"z" * 200_000, announce
    if announce == 0:
        mirror.announce = 50_000  # less than the limit, and less than what is sent
    with pytest.raises(DataError):
        fetch(remote(f"{mirror.url}/f", limit=100_000), tmp_path)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 100_000


def test_a_bomb_is_not_unpacked_beyond_the_limit(mirror, tmp_path):
    mirror.content["/f"] = gzip.compress(bytes(20_000_000))
    with pytest.raises(DataError, match="holds more than"):
        fetch(remote(f"{mirror.url}/f", limit=100_000), tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_not_blamed_on_the_mirror(mirror, tmp_path):
    mirror.content["/f"] = PACKED
    (tmp_path / ".file.gz.0.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written: No space left.*free some space"):
        fetch(remote(f"{mirror.url}/f"), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(remote("http://127.0.0.1:9/x"), tmp_path / "file" / "below")


def test_mnist_is_downloaded_into_twofold_home_and_only_what_is_missing(mirror, tmp_path, monkeypatch):
    arrays = {
        "t10k-images-idx3-ubyte": np.full((3, 28, 28), 7, np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(3, dtype=np.uint8),
    }
    digests = {}
    for name, array in arrays.items():
        data.write_idx(tmp_path / name, array)
        raw = (tmp_path / name).read_bytes()
        mirror.content[f"/{name}.gz"], digests[name] = gzip.compress(raw), hashlib.sha256(raw).hexdigest()
    family = mnist_family._MNIST._replace(mirrors=(f"{mirror.url}/",), sha256=digests)
    monkeypatch.setattr(mnist_family, "_MNIST", family)
    test = data.mnist("test")
    assert test.images.shape == (3, 1, 28, 28) and test.labels.tolist() == [0, 1, 2]
    home = tmp_path / "home" / "data" / "mnist"
    assert left_over(home) == [f"{name}.gz" for name in sorted(arrays)]
    (home / "t10k-labels-idx1-ubyte.gz").unlink()
    mirror.requests.clear()
    data.mnist("test")
    data.mnist("test")
    assert mirror.requests == [("/t10k-labels-idx1-ubyte.gz", None)]
