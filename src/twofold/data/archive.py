"""Taking known files out of a tar archive that nobody vouches for."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from twofold.base.errors import FormatError, UnsafeFileError
from twofold.base.files import atomic_write
from twofold.data.streams import open_bounded


def extract_known(
    archive: str | os.PathLike, names: Sequence[str], folder: str | os.PathLike, limit: int
) -> list[Path]:
    """Write the regular files called ``names`` in ``archive`` (.tar or .tar.gz) into ``folder``; their paths.

    Names come from the caller and never from the archive: whatever paths, links or devices it holds, nothing is
    written elsewhere. At most ``limit`` bytes are decompressed. FormatError if it is damaged or lacks a file.
    """
    wanted, folder = set(names), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_bounded(archive, limit) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    name = PurePosixPath(member.name).name
                    if name in wanted and member.isreg():
                        _copy(tar, member, folder / name, archive, limit)
                        wanted.remove(name)
                    if not wanted:
                        break
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{archive}: not a tar archive, or damaged: {error}; fetch it again") from error
    if wanted:
        raise FormatError(f"{archive}: has no file {', '.join(sorted(wanted))}; expected the archive as published")
    return [folder / name for name in names]


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: str | os.PathLike, limit: int) -> None:
    if member.issparse() or member.size > limit:
        raise UnsafeFileError(f"{archive}: {member.name} claims {member.size:,} bytes; at most {limit:,} are expected")
    source = tar.extractfile(member)
    left = member.size
    with atomic_write(target) as out:
        while source is not None and left > 0 and (data := source.read(min(left, 1 << 20))):
            out.write(data)
            left -= len(data)
        if left:
            raise FormatError(f"{archive}: truncated inside {member.name}: {left:,} bytes are missing; fetch it again")
