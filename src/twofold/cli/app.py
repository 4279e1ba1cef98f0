"""The commands put together, and what errors become."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from twofold.base import flags
from twofold.base.errors import (
    MissingDependencyError,
    TwofoldError,
    UnsafeFileError,
    UnsupportedOpError,
    VerificationError,
)
from twofold.cli import bench, data, doctor, evaluate, export, predict, run_file, summary, train, zoo

app = typer.Typer(
    name="twofold", help="Train, measure and ship convolutional networks.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
for module in (train, evaluate, predict, summary, export, run_file, bench, zoo, data, doctor):
    app.command(getattr(module, "NAME", module.__name__.rsplit(".", 1)[-1]))(module.command)

UsageError: Any = typer.BadParameter.__base__  # typer brings a click of its own in newer releases

# what a kind of error means to the shell; the first row that fits
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UnsafeFileError, 5),
    (UnsupportedOpError, 4),
    (VerificationError, 3),
    (MissingDependencyError, 1),
    (TwofoldError, 1),
    (OSError, 1),
    (MemoryError, 1),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors twofold raises on purpose are one line on stderr."""
    try:
        result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        return int(result or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (typer.Abort, typer.Exit) as stop:
        return 130 if isinstance(stop, typer.Abort) else stop.exit_code
    except UsageError as error:
        error.show(sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except tuple(kind for kind, _ in EXIT_CODES) as error:
        if flags.get("TWOFOLD_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
