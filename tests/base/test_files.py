"""Atomic writing: interrupted at any point, the old content stays whole."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys

import pytest

from twofold.base.files import atomic_write


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"second, longer"):
        with atomic_write(path) as stream:
            stream.write(content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_a_bare_name_is_written_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_write("file") as stream:
        stream.write(b"here")
    assert (tmp_path / "file").read_bytes() == b"here"


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file"):
            pass
        assert os.umask(0o027) == 0o027  # and the umask itself is left as it was
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_readers_see_the_old_content_until_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_error_keeps_the_old_content_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as stream:
        stream.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def run(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, **options)


def test_kill_9_in_the_middle_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = """
import os, signal, sys
from twofold.base.files import atomic_write
with atomic_write(sys.argv[1]) as stream:
    stream.write(bytes(100_000)); stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, path).returncode == -9
    assert path.read_bytes() == b"old"


def test_a_full_disk_keeps_the_old_content_and_is_an_os_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = """
import signal, sys
from twofold.base.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with atomic_write(sys.argv[1]) as stream:
        stream.write(bytes(1_000_000))
except OSError as error:
    print("refused", error.errno)
"""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    done = run(code, path, preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert "refused" in done.stdout, done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "absent" / "file"):
        pass
