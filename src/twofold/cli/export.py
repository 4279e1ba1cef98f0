"""``twofold export``: a trained or fresh network as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import twofold as tw
from twofold.cli.common import DEFAULT_OUTPUT, Checkpoint, Json, emit, load_trained


def command(
    path: Annotated[Path, typer.Argument(help="The file to write; its suffix chooses the format (.onnx).")],
    checkpoint: Checkpoint = DEFAULT_OUTPUT,
    json: Json = False,
) -> None:
    """Export the network of a checkpoint, for any batch size."""
    model, settings, file = load_trained(checkpoint)
    tw.export(model, (tw.tensor(np.zeros((1, *settings.input_shape), np.float32)),), path)
    record = {"path": str(path), "network": settings.network, "checkpoint": str(file), "bytes": path.stat().st_size}
    emit(record, json, f"wrote {path} ({record['bytes']:,} bytes): {settings.network} from {file}")
