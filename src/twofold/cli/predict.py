"""``twofold predict``: classify image files with a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import twofold as tw
from twofold.cli.common import DEFAULT_OUTPUT, Checkpoint, DeviceName, Json, emit, load_trained, use_device
from twofold.train.evaluate import main_output
from twofold.train.task import read_input


def command(
    images: Annotated[list[Path], typer.Argument(help="Image files (PNG, JPEG, ...).")],
    checkpoint: Checkpoint = DEFAULT_OUTPUT,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 3,
    invert: Annotated[
        bool, typer.Option("--invert", help="For dark ink on light paper, where training had light on dark.")
    ] = False,
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Print the most likely classes of each image."""
    use_device(device)
    model, settings, _ = load_trained(checkpoint)
    records: list[dict[str, Any]] = []
    for path in images:
        with tw.no_grad():
            logits = main_output(model(tw.tensor(read_input(path, settings, invert=invert))))
            shares = np.asarray(tw.nn.functional.softmax(logits, axis=1))[0]
        order = np.argsort(-shares, kind="stable")[:top]
        records.append(
            {
                "image": str(path),
                "classes": [{"name": settings.classes[i], "probability": float(shares[i])} for i in order],
            }
        )
    lines = [
        f"{r['image']}: " + ", ".join(f"{c['name']} {c['probability']:.1%}" for c in r["classes"]) for r in records
    ]
    emit(records, json, "\n".join(lines))
