"""What several commands share: options, printing, and a trained network from its checkpoint."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import twofold as tw
from twofold.base.errors import ArgumentError, FormatError
from twofold.ops.precision import policy_of
from twofold.train.checkpoint import read_checkpoint
from twofold.train.fit import BEST, LAST
from twofold.train.task import Settings, build_model


def _known(precision: str) -> str:
    """The precision, if there is such a one."""
    try:
        policy_of(precision)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from None
    return precision


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceName = Annotated[
    str | None, typer.Option("--device", help="Where to run: cpu, gpu, gpu:1, tpu, xla:cpu, reference.")
]
Precision = Annotated[
    str, typer.Option("--precision", callback=_known, help="fp32, or mixed: bf16, or fp16 with loss scaling.")
]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", "-c", help="A checkpoint, or the folder of a training.")]
DEFAULT_OUTPUT = Path("runs")


def emit(record: Any, as_json: bool, text: str) -> None:
    """Print a result on stdout: the record as JSON, or the text for people."""
    print(json.dumps(record, default=str) if as_json else text)


def note(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr)


def use_device(name: str | None) -> None:
    """Put new arrays on a device from here on."""
    if name:
        tw.device(name).__enter__()


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that a path means: the file, or the best (else the last) one in a folder or in its only subfolder."""
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).exists():
                return path / name
        inside = [p for p in sorted(path.iterdir()) if (p / BEST).exists() or (p / LAST).exists()]
        if len(inside) == 1:
            return checkpoint_file(inside[0])
        if inside:
            raise ArgumentError(
                f"{path} holds several trainings ({', '.join(p.name for p in inside)}); name one with --checkpoint {inside[0]}"
            )
    if not path.is_file():
        raise ArgumentError(f"no checkpoint at {path}; `twofold train` writes one to {DEFAULT_OUTPUT}/NETWORK-DATA")
    return path


def load_trained(path: Path) -> tuple[Any, Settings, Path]:
    """The network of a checkpoint with its parameters, in evaluation mode, and its settings."""
    file = checkpoint_file(path)
    arrays, progress = read_checkpoint(file)
    settings = Settings.from_json(progress.settings, file)
    model = build_model(settings)
    weights = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except (KeyError, ValueError, tw.TwofoldError) as error:
        raise FormatError(f"{file}: does not hold the weights of {settings.network}: {error}") from None
    model.eval()
    return model, settings, file


def table(rows: list[list[str]], header: list[str]) -> str:
    """Plain aligned columns; numbers to the right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)).rstrip() for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _numeric(text: str) -> bool:
    return re.fullmatch(r"-|[\d,.]*( [kMG])?", text) is not None
