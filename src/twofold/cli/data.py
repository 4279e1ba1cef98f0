"""``twofold data``: the data sets there are, and where their files are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from twofold import data
from twofold.base.errors import TwofoldError
from twofold.cli.common import Json, emit, table


def command(
    name: Annotated[str | None, typer.Argument(help="Load this data set and say what is in it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of its files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch files that are not here.")] = False,
    json: Json = False,
) -> None:
    """List the data sets, or load one and describe it."""
    records = [_describe(n, data_dir, download) for n in ([name] if name else data.names())]
    if name and "error" in records[0]:
        raise records[0]["error"]
    rows = [
        [
            r["name"],
            r["about"],
            r.get("train", "-"),
            r.get("test", "-"),
            r.get("source") or _where(r["name"], data_dir, r.get("error")),
        ]
        for r in records
    ]
    for r in records:
        r.pop("error", None)
    emit(records, json, table([list(map(str, row)) for row in rows], ["data set", "what", "train", "test", "where"]))


def _describe(name: str, root: Path | None, download: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name, "about": data.info(name).about}
    try:
        train, test = (data.load(name, split, root, download=download) for split in ("train", "test"))
        record |= {
            "train": len(train),
            "test": len(test),
            "classes": list(train.classes),
            "source": getattr(train, "source", "") or str(root or ""),
        }
    except TwofoldError as error:
        record["error"] = error
    return record


def _where(name: str, root: Path | None, error: TwofoldError | None) -> str:
    """Where the files of a data set are, or come from."""
    if error is None:
        return "here"
    if data.info(name).shape is not None:
        return "not here (--download fetches it)"
    return "a folder of yours (--data-dir)" if root is None else str(error).split(";")[0]
