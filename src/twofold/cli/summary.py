"""``twofold summary``: a network layer by layer, without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

import twofold as tw
from twofold import nn, zoo
from twofold.backends.interface import Memory
from twofold.base.errors import ArgumentError
from twofold.cli.bench import step_of
from twofold.cli.common import Json, emit, note


def command(
    network: Annotated[str, typer.Argument(help="A network of `twofold zoo`.")],
    input: Annotated[str | None, typer.Option(help="Shape of one image, such as 3x224x224.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Number of classes.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the network, such as bottlenecks=False; may be repeated.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Print what a compiled step takes, planned, not run.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images a step, for --memory.")] = 1,
    train: Annotated[bool, typer.Option("--train", help="A training step instead of inference, for --memory.")] = False,
    keep_gradients: Annotated[
        bool, typer.Option("--keep-gradients", help="Gradients are there until the next step, for --memory --train.")
    ] = False,
    json: Json = False,
) -> None:
    """Print each layer's output shape, parameters, multiply-adds and activation memory; or a step's memory."""
    if memory:
        run, arguments = step_of(network, batch, train, keep_gradients=keep_gradients)
        planned, besides = run.memory(*arguments), interpreter()
        kind = "training step" if train else "inference"
        record = {**asdict(planned), "peak": planned.peak, "interpreter": besides}
        record["process"] = None if besides is None else besides + planned.peak
        emit(record, json, f"{network}, batch {batch}, {kind}: {planned}" + _process(planned, besides))
        if train and not keep_gradients:
            note("up to the parameters' size more where gradients outlive a step, for the next zero_grad(): --keep-gradients")
        return
    entry = zoo.info(network)
    shape = entry.input_shape if input is None else _shape(input)
    fitting = entry.options_for(shape)
    if fitting:
        note(f"{network} for images of {'x'.join(map(str, shape))}: {', '.join(f'{k}={v}' for k, v in fitting.items())}")
    with nn.init.skipped():
        model = entry(classes, **{**fitting, **_options(option or [])})
    found = tw.summary(model, shape)
    emit(found.as_dict() if json else None, json, str(found))


def _process(planned: Memory, besides: int | None) -> str:
    if besides is None:
        return ""
    mib = [f"{size / 2**20:,.1f} MiB" for size in (besides + planned.peak, planned.peak, besides)]
    return "\na process that does nothing else: {} ({} planned, {} of interpreter and libraries, measured)".format(*mib)


_SMALL = """
import numpy as np
import twofold as tw
from twofold import nn
double = tw.compile(lambda x: x + x)
double(tw.tensor(np.zeros(4, np.float32)))
print(next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def interpreter() -> int | None:
    """Bytes that Python and its libraries take in a process that runs next to nothing; None where the system does not tell."""
    command = [sys.executable, "-c", _SMALL]
    found = [subprocess.run(command, capture_output=True, text=True, check=False).stdout for _ in range(2)]
    sizes = [int(text) for text in found if text]
    return min(sizes, default=None)  # the first one may have had to compile


def _options(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE, where the value is a Python literal, or else a word."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals and value):
            raise ArgumentError(f"--option {text!r}; expected NAME=VALUE, such as bottlenecks=False")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise ArgumentError(f"--input {text!r}; expected channels x height x width, such as 3x224x224")
    channels, height, width = map(int, parts)
    return channels, height, width
