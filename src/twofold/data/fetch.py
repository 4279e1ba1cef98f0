"""Downloading a file: from mirrors, resumed with Range, verified by SHA-256, renamed into place at the end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from twofold.base.errors import DataError, FormatError, TwofoldError
from twofold.data.remote import Progress, Remote
from twofold.data.streams import CHUNK, open_bounded

log = logging.getLogger("twofold.data")
TIMEOUT = 30  # seconds without a byte before a mirror is given up
ATTEMPTS = 2  # for each mirror: the second one resumes, or starts again if the first left a wrong file


def fetch(remote: Remote, folder: str | os.PathLike, progress: Progress | None = None) -> Path:
    """Bring ``remote`` into ``folder`` and give its path. DataError, with what to do by hand, if no mirror has it.

    What has come is kept beside it (``.NAME.K.part``, one for each mirror) when the line breaks, and continued the next
    time. The file appears under its name only when complete and verified.
    """
    folder, target = Path(folder), Path(folder) / remote.name
    _write(target, lambda: folder.mkdir(parents=True, exist_ok=True))
    failures = []
    for number, url in enumerate(remote.urls):
        part = folder / f".{remote.name}.{number}.part"
        for _ in range(ATTEMPTS):
            try:
                log.info("downloading %s from %s", remote.name, url)
                _download(url, part, remote, progress)
                _verify(part, remote)
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{url}: {_reason(error)}")
                if isinstance(error, urllib.error.URLError):  # refused or out of reach: trying again costs time only
                    break
                continue
            _write(target, lambda part=part: os.replace(part, target))
            return target
    raise DataError(
        f"{remote.name} could not be downloaded:\n  " + "\n  ".join(dict.fromkeys(failures)) + f"\n"
        f"Fetch the file by other means (another machine with access to the net, say) and put it into {folder}"
    )


def _download(url: str, part: Path, remote: Remote, progress: Progress | None) -> None:
    """Append to ``part`` what it lacks; begin anew if the server does not continue."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "twofold", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing beyond what is here: complete, or longer than the file on the server
            return
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        expected = int(response.headers.get("Content-Length") or 0)
        total = have + expected if expected else 0
        if total > remote.max_bytes:
            raise FormatError(f"the server announces {total:,} bytes; at most {remote.max_bytes:,} are expected")
        with _write(part, lambda: part.open("ab" if resumed else "wb")) as file:
            while data := response.read(CHUNK):
                have += len(data)
                if have > remote.max_bytes:
                    raise FormatError(f"sends more than the {remote.max_bytes:,} bytes expected")
                _write(part, lambda data=data: file.write(data))
                if progress:
                    progress(remote.name, have, total)
    if total and have < total:
        raise FormatError(f"ended after {have:,} of {total:,} bytes")


def _verify(part: Path, remote: Remote) -> None:
    """FormatError, with ``part`` removed, unless its content (or the file itself) has the right digest."""
    try:
        digest = file_sha256(part) if remote.as_it_comes else content_sha256(part, remote.max_bytes)
        if digest != remote.sha256:
            raise FormatError(f"content has SHA-256 {digest}; expected {remote.sha256}")
    except FormatError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 (hex) of a file as it is."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(path: str | os.PathLike, limit: int) -> str:
    """SHA-256 (hex) of a file's content, decompressed if it is gzip; at most ``limit`` bytes are read."""
    digest = hashlib.sha256()
    with open_bounded(path, limit) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _write(path: Path, action: Callable):
    """Do something to the disk; what goes wrong there is no fault of a mirror's and ends the download."""
    try:
        return action()
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; free some space, or name another folder (root=...)"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return str(error) if isinstance(error, TwofoldError) else f"{type(error).__name__}: {error}"
