"""The examples run, tiny: as a user would start them, on data that is in the package or made here."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS = ["--data", "digits", "--side"]
# script -> (arguments, what it must have printed, the pictures it must have drawn)
RUNS = {
    "degradation": (
        ["plain20_cifar", *DIGITS, "8", "--steps", "2", "--batch", "8"],
        r"plain20_cifar +training error +\d+\.\d\d %", ["degradation.png"],
    ),
    "ensemble_gain": (
        [*DIGITS, "28", "--members", "2", "--epochs", "1", "--batch", "256"],
        r"2 of 2: test error (\d+\.\d\d) %.*\ntw.zoo.ensemble of all: \1 %", ["ensemble_gain.png"],
    ),
    "skipped_parts": (
        ["stochastic-depth", *DIGITS, "8", "--steps", "2", "--warm", "1", "--batch", "2", "--eager"],
        r"residual blocks ran on average \((?:[1-4]\d|50|51|52) to [1-5]\d\)", ["skipped_parts.png"],
    ),
    "first_layer": (
        ["photographs", "--steps", "2", "--batch", "2", "--side", "64"],
        r"error on the right quarters \d+\.\d %", ["first_layer-filters.png", "first_layer-activations.png"],
    ),
}  # fmt: skip


def test_every_example_is_run():
    assert {p.stem for p in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_and_draws(name, tmp_path, monkeypatch, capsys):
    arguments, printed, pictures = RUNS[name]
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for k in range(2):
        noise = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photographs" / f"{k}.png")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(printed, capsys.readouterr().out)
    for picture in pictures:
        with Image.open(tmp_path / picture) as drawn:
            assert len(np.unique(np.asarray(drawn.convert("L")))) > 20  # not blank
