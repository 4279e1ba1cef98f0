"""``twofold train``: train a network of the zoo on real images, export it, and check the exported file."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import twofold as tw
from twofold import data as datasets
from twofold.base.errors import ArgumentError, VerificationError
from twofold.cli import parallel
from twofold.cli.common import DEFAULT_OUTPUT, DeviceName, Json, Precision, emit, load_trained, note
from twofold.train import Reporter, Trainer, read_checkpoint
from twofold.train.fit import BEST, CURVES, LAST
from twofold.train.report import seconds
from twofold.train.task import Settings, build_model, build_optimizer, build_schedule, loader, prepare, settings_for

CHECKED = 64  # validation images on which the exported file is compared with the model
TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit


def command(
    network: Annotated[str, typer.Argument(help="A network of `twofold zoo`.")] = "lenet5",
    data: Annotated[str, typer.Option(help="A data set of `twofold data`.")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to train; by default the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps in all; --resume goes on.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File of weights to start from; a classifier of other classes is drawn.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial values, the order and the augmentation.")] = 0,
    recipe: Annotated[str, typer.Option(help="quick, or paper: the published procedure.")] = "quick",
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints and the exported network.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Threads that prepare batches.")] = 0,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints within an epoch.")] = 30.0,
    eager: Annotated[bool, typer.Option("--eager", help="Run each step as a dynamic graph; same numbers.")] = False,
    precision: Precision = "fp32",
    device: DeviceName = None,
    shard_state: parallel.ShardState = False,
    batch_norm: parallel.BatchNorm = "synchronised",
    distributed: parallel.Distributed = False,
    coordinator: parallel.Coordinator = None,
    num_processes: parallel.Processes = None,
    process_id: parallel.Rank = None,
    join_timeout: parallel.Timeout = 300.0,
    heartbeat: parallel.Heartbeat = 30.0,
    json: Json = False,
) -> None:
    """Train NETWORK on real images; write checkpoints, curves and an ONNX file that is checked in another process."""
    began = time.perf_counter()
    output = output or DEFAULT_OUTPUT / f"{network}-{data}"
    train_set, val_set = (datasets.load(data, split, data_dir) for split in ("train", "test"))
    settings = settings_for(
        network, data, train_set, recipe, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, precision=precision
    )
    if resume:
        if weights is not None:
            raise ArgumentError("--weights: a training that is resumed goes on with its own; leave out one of the two")
        settings = _resumed(output, settings, epochs)
    with parallel.job(distributed, coordinator, num_processes, process_id, join_timeout, heartbeat):
        devices = parallel.place(device, distributed)
        how: dict[str, Any] = {"devices": devices, "shard_state": shard_state, "batch_norm": batch_norm}
        how |= {"compiled": not eager, "clip": clip, "checkpoint_every": checkpoint_every}
        trainer = _trainer(settings, train_set, val_set, output, workers, weights, **how)
        if resume:
            trainer.resume()
        first = tw.distributed.rank() == 0
        if first:
            note(_beginning(trainer, settings, len(train_set), len(val_set)))
        history = trainer.run(settings.epochs, Reporter(settings.epochs, quiet=not first), steps)
        tw.distributed.leave()
    if first and trainer.progress.epoch < settings.epochs:
        stopped = {"network": network, "data": data, "steps": trainer.progress.step, "checkpoint": str(output / LAST)}
        emit(stopped, json, f"stopped after step {stopped['steps']}; {stopped['checkpoint']} is kept: --resume goes on")
    elif first:  # the others have done their part
        result = _finish(settings, val_set, output, history, time.perf_counter() - began)
        emit(result, json, _text(result))


def _beginning(trainer: Trainer, settings: Settings, train_size: int, val_size: int) -> str:
    where = trainer.where or tw.tensor(0).device
    count, processes = where.backend.count(where), tw.distributed.processes()
    several = f" ({count} devices of {processes} process{'es' * (processes > 1)})" if count > 1 else ""
    images = f"{train_size:,} images of {'x'.join(map(str, settings.input_shape))} to train, {val_size:,} to validate"
    return (
        f"{settings.network} ({trainer.model.num_parameters():,} parameters) on {settings.data}: {images}, "
        f"{settings.epochs} epoch{'s' * (settings.epochs > 1)} of {len(trainer.train)} steps, on {where}{several}"
        + ("" if settings.precision == "fp32" else f" in {settings.precision}")
    )


def _resumed(output: Path, settings: Settings, epochs: int | None) -> Settings:
    """The settings that the checkpoint was made with; only the number of epochs may change."""
    old = Settings.from_json(read_checkpoint(output / LAST)[1].settings, output / LAST)
    for name in ("network", "data", "recipe", "batch_size", "seed", "precision"):
        before, now = getattr(old, name), getattr(settings, name)
        if before != now:
            raise ArgumentError(
                f"--resume: {output / LAST} was trained with {name} {before!r}, this asks for {now!r}; "
                "give the same, or another --output"
            )
    old.epochs = epochs or old.epochs
    return old


def _trainer(
    settings: Settings, train_set: Any, val_set: Any, output: Path, workers: int, weights: Path | None, **how: Any
) -> Trainer:
    tw.random.seed(settings.seed)
    model = build_model(settings)
    if weights is not None:
        note(f"{weights}: {tw.load_weights(model, weights, reshaped='keep')}")
    optimizer = build_optimizer(model, settings)
    shard = (tw.distributed.rank(), tw.distributed.processes())
    batches, val = (
        loader(prepare(data, settings), settings, training=training, workers=workers, shard=shard)
        for data, training in ((train_set, True), (val_set, False))
    )
    schedule = build_schedule(optimizer, settings, len(batches))
    return Trainer(
        model, batches, val, optimizer=optimizer, schedule=schedule, schedule_steps=not schedule.needs_metric,
        output=output, settings=settings.to_json(), precision=settings.precision, **how,
    )  # fmt: skip


def _finish(
    settings: Settings, val_set: Any, output: Path, history: list[dict[str, Any]], took: float
) -> dict[str, Any]:
    """Export the best network and compare the file, run by a process without the model's code, with the model."""
    model, _, _ = load_trained(output / BEST)
    batches = loader(prepare(val_set, settings), settings, training=False)
    images = np.concatenate([np.asarray(x) for x, _ in _first_batches(batches)])[:CHECKED]
    onnx = output / f"{settings.network}.onnx"
    tw.export(model, (tw.tensor(images[:1]),), onnx)
    with tw.no_grad():
        expected = np.asarray(model(tw.tensor(images)))
    got = run_elsewhere(onnx, images)
    error = float(np.max(np.abs(got - expected)) / max(float(np.max(np.abs(expected))), 1e-30))
    same = int((got.argmax(1) == expected.argmax(1)).sum())
    best = max(history, key=lambda row: row.get("val_accuracy", row["accuracy"]))
    result = {
        "network": settings.network, "data": settings.data, "epochs": len(history), "seconds": round(took, 2),
        "best_epoch": best["epoch"], "val_accuracy": best.get("val_accuracy"), "val_loss": best.get("val_loss"),
        "checkpoint": str(output / BEST), "onnx": str(onnx), "checked_images": len(images),
        "same_predictions": same, "largest_difference": error,
        "curves": str(output / CURVES) if (output / CURVES).exists() else None,
    }  # fmt: skip
    if same != len(images) or not error <= TOLERANCE:
        raise VerificationError(
            f"{onnx}: predicts {same} of {len(images)} images as the model does; "
            f"logits differ by {error:.2g} (allowed {TOLERANCE:g})"
        )
    return result


def _first_batches(batches: Any) -> Any:
    seen = 0
    for images, labels in batches:
        yield images, labels
        seen += int(labels.shape[0])
        if seen >= CHECKED:
            return


ELSEWHERE = """
import sys
import numpy as np
import twofold as tw
function = tw.load(sys.argv[1])
np.save(sys.argv[3], np.asarray(function(np.load(sys.argv[2]))))
loaded = [m for m in sys.modules if m.startswith(("twofold.nn", "twofold.zoo", "twofold.train"))]
sys.exit(f"model code was imported: {loaded}" if loaded else 0)
"""


def run_elsewhere(onnx: Path, images: np.ndarray) -> np.ndarray:
    """The file's outputs, computed by a process that imports no model code."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npy"), Path(folder, "out.npy")
        np.save(given, images)
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(onnx), str(given), str(found)], capture_output=True, text=True
        )
        if done.returncode:
            raise VerificationError(
                f"{onnx} does not run in a process of its own: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
            )
        return np.load(found)


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"{result['network']} on {result['data']}: {result['val_accuracy']:.2%} of the validation images right "
        f"(epoch {result['best_epoch']} of {result['epochs']}), in {seconds(result['seconds'])}",
        f"exported {result['onnx']}; run by a process without the model's code, its predictions equal the model's on "
        f"{result['same_predictions']} of {result['checked_images']} images (logits within {result['largest_difference']:.1e})",
        f"checkpoint {result['checkpoint']}",
    ]
    return "\n".join(lines + ([f"curves {result['curves']}"] if result["curves"] else []))
