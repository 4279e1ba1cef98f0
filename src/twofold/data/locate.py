"""Where a data set's files are: the folder the user names, $TWOFOLD_HOME, the system's; else they are downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from twofold.base import flags
from twofold.base.errors import DataError
from twofold.data.remote import Progress, Remote

Root = str | os.PathLike | None


def home(name: str) -> Path:
    """The folder under $TWOFOLD_HOME that keeps data set ``name``."""
    return flags.get("TWOFOLD_HOME") / "data" / name


def folders(name: str, root: Root, below: Iterable[str] = (), system: Sequence[str] = ()) -> list[Path]:
    """Folders to look in, in order; ``below`` are subfolders that archives and other tools make."""
    tops = [home(name)] if root is None else [Path(root).expanduser(), home(name)]
    return [top / sub for top in tops for sub in ("", *below)] + [Path(place) for place in system]


def find(folder: Path, name: str) -> Path | None:
    """The file ``name`` in ``folder``, with or without ``.gz``; None if there is none."""
    for candidate in (name, f"{name}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def find_all(places: Iterable[Path], names: Sequence[str]) -> list[Path] | None:
    """All of ``names`` from the first folder that has them all."""
    for folder in places:
        found = [path for name in names if (path := find(folder, name)) is not None]
        if len(found) == len(names):
            return found
    return None


def bring(remote: Remote, folder: Path, progress: Progress | None) -> Path:
    """``fetch``, whose network modules are loaded only now."""
    from twofold.data.fetch import fetch

    return fetch(remote, folder, progress)


def obtain(
    title: str,
    remotes: Sequence[Remote],
    places: Sequence[Path],
    target: Path,
    download: bool,
    progress: Progress | None,
) -> list[Path]:
    """Paths of all ``remotes``: from ``places``, or downloaded into ``target``; DataError says where to put them."""
    names = [remote.name.removesuffix(".gz") for remote in remotes]
    if found := find_all(places, names):
        return found
    if download:
        return [find(target, name) or bring(remote, target, progress) for name, remote in zip(names, remotes)]
    raise missing(title, names, places, target)


def missing(title: str, names: Sequence[str], places: Sequence[Path], target: Path) -> DataError:
    """The error that says what was looked for, where, and what to do."""
    looked = "\n  ".join(dict.fromkeys(map(str, places)))
    return DataError(
        f"{title}: no folder has {', '.join(names)} (or .gz). Looked in\n  {looked}\n"
        f"Put the files into {target}, name their folder (root=..., --data-dir), or allow the download (download=True)"
    )
