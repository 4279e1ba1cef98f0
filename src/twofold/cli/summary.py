"""``twofold summary``: a network layer by layer, without running it."""

from __future__ import annotations

import ast
from dataclasses import asdict
from typing import Annotated, Any

import typer

import twofold as tw
from twofold import nn, zoo
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
    json: Json = False,
) -> None:
    """Print each layer's output shape, parameters, multiply-adds and activation memory; or a step's memory."""
    if memory:
        run, arguments = step_of(network, batch, train)
        planned = run.memory(*arguments)
        kind = "training step" if train else "inference"
        record = {**asdict(planned), "peak": planned.peak}
        emit(record, json, f"{network}, batch {batch}, {kind}: {planned}")
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
