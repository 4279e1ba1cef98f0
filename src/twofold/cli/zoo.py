"""``twofold zoo``: the networks there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from twofold import zoo
from twofold.cli.common import Json, emit, table

ERROR = "published error (top-1/top-5)"


def command(
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against operations to this PNG file.")] = None,
    json: Json = False,
) -> None:
    """List the networks: year, parameters, multiply-adds, published error, paper."""
    if plot is not None:
        from twofold.viz import bubbles

        shown = bubbles(plot)
        emit({"picture": str(plot), "networks": shown}, json, f"{plot}: {len(shown)} networks")
        return
    entries = [zoo.info(name) for name in zoo.names()]
    records: list[dict[str, Any]] = [
        {"name": e.name, "year": e.year, "params": e.params, "macs": e.macs, "input": list(e.input_shape), "classes": e.classes,
         "error": str(e.error) if e.error else None, "paper": str(e.paper)}
        for e in entries
    ]  # fmt: skip
    rows = [
        [e.name, str(e.year), f"{e.params:,}", f"{e.macs / 1e6:,.1f} M", str(e.error or "-"), e.paper.short]
        for e in entries
    ]
    emit(records, json, table(rows, ["network", "year", "parameters", "multiply-adds", ERROR, "paper"]))
