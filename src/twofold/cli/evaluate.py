"""``twofold evaluate``: score a trained network on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofold import data as datasets
from twofold.cli.common import DEFAULT_OUTPUT, Checkpoint, DeviceName, Json, emit, load_trained, use_device
from twofold.train import evaluate
from twofold.train.task import loader, prepare


def command(
    checkpoint: Checkpoint = DEFAULT_OUTPUT,
    data: Annotated[str | None, typer.Option(help="A data set; by default the one it was trained on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    split: Annotated[str, typer.Option(help="train or test.")] = "test",
    device: DeviceName = None,
    json: Json = False,
) -> None:
    """Print loss, accuracy and top-5 accuracy of a checkpoint."""
    use_device(device)
    model, settings, file = load_trained(checkpoint)
    dataset = prepare(datasets.load(data or settings.data, split, data_dir), settings)
    score = evaluate(model, loader(dataset, settings, training=False))
    record = {
        "checkpoint": str(file),
        "network": settings.network,
        "data": data or settings.data,
        "split": split,
        **score._asdict(),
    }
    what = f"{settings.network} on {record['data']} ({split}, {score.samples:,} images)"
    text = f"{what}: accuracy {score.accuracy:.2%}, top-5 {score.top5:.2%}, loss {score.loss:.4f}"
    emit(record, json, text)
