"""The scripts for GPUs, as far as they run without one: counting compiled programs, and a dry measurement."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script of the folder, loaded: ``script("gpu")``. What it puts into the environment goes again."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


# lines of programs compiled for an H100, cut
CONV = '(f32[64,7,7,8]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), custom_call_target="__cudnn$conv'
PROGRAM = f"""HloModule jit_step

%wrapped_transpose_computation (p: f32[8,3,5,5]) -> f32[8,5,5,3] {{
  ROOT %t = f32[8,5,5,3]{{3,2,1,0}} transpose(%p), dimensions={{0,2,3,1}}
}}

ENTRY %main (x: f32[8,3,5,5]) -> (f32[]) {{
  %wrapped_transpose = f32[8,5,5,3]{{3,2,1,0}} fusion(%x), kind=kLoop, calls=%wrapped_transpose_computation
  %c.1 = {CONV}BiasActivationForward", metadata={{op_name="jit(step)/conv1/conv_general_dilated"}}
  %c.2 = {CONV}Forward", metadata={{op_name="jit(step)/conv_input_grad/transpose()/conv_general_dilated"}}
  %c.3 = {CONV}BackwardFilter", metadata={{op_name="jit(step)/conv_weight_grad/transpose()/conv_general_dilated"}}
  %m = (f32[64,10]{{1,0}}, s8[99]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  %k = bf16[256,250]{{1,0}} copy(%b)
  %f = (f32[8]{{0}}, f32[8]{{0}}) fusion(%k, %c), kind=kInput, calls=%reduce
  %g = s64[8]{{0}} all-gather(%y), dimensions={{0}}
  %r = f32[64,3]{{0}} all-reduce-start(%f), to_apply=%sum
  %d = f32[64,3]{{0}} all-reduce-done(%r)
  %s = (f32[], bf16[10]{{0}}, s64[2]{{0}}) all-reduce(%f, %g, %h), to_apply=%sum
}}
"""


def test_what_stands_in_a_compiled_program_is_counted(script: Any) -> None:
    gpu_compile = script("gpu_compile")
    assert gpu_compile.count(PROGRAM) == gpu_compile.Counts(
        convolutions={"forward": 1, "input gradient": 1, "weight gradient": 1}, fused=1, types={"f32": 3}, products=1,
        fusions=2, triton=0, turned=8 * 5 * 5 * 3 * 4 + 256 * 250 * 2, collectives={"all-gather": 1, "all-reduce": 2},
        reduced=64 * 3 + 1 + 10,
    )  # fmt: skip


def test_a_table_says_which_steps_did_not_compile_and_finished_rows_are_kept(script: Any, tmp_path: Path) -> None:
    gpu_compile = script("gpu_compile")
    case = {"network": "lenet5", "devices": 1, "precision": "fp32", "shard_state": False, "per_replica": False}
    row = {"case": case, "asked": {}, "error": "XlaRuntimeError: no"}
    assert "| lenet5, 1 x H100, fp32 | not compiled: XlaRuntimeError: no |" in gpu_compile.table([row])
    results = tmp_path / "rows.json"
    results.write_text(json.dumps(row) + "\n")
    assert gpu_compile.known(results) == {gpu_compile.Case("lenet5"): row}


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the compiler for CUDA")
def test_a_small_step_compiles_for_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu_compile.py"), "--networks", "lenet5"]
    done = subprocess.run([*command, "--results", "r.json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in (tmp_path / "r.json").read_text().splitlines()]
    assert [row["case"]["devices"] for row in rows] == [1, 4] and "not compiled" not in done.stdout
    for row in rows:
        found, asked = row["counts"]["convolutions"], row["asked"]
        assert sum(found.values()) > 0 and all(asked[kind] == n for kind, n in found.items())


def test_the_measurement_leaves_jax_free_to_find_the_gpu(script: Any) -> None:
    """Its workers inherit its environment; compiling without a GPU needs another."""
    script("gpu")
    assert "gpu_compile" not in sys.modules and os.environ["JAX_PLATFORMS"] == os.environ["XLA_FLAGS"] == ""


def test_a_result_that_differs_is_not_counted(script: Any, tmp_path: Path) -> None:
    gpu = script("gpu")
    losses = {
        "twofold": [2.0, 1.9],
        "torch": [2.0, 1.9005],
        "other": [2.0, 1.99],
        "worse": [2.0, np.nan],
        "far": [1.0, 0.9],
    }
    peers: dict[str, Any] = {}
    for name, values in losses.items():
        np.save(tmp_path / f"{name}.npy", np.array(values, np.float32))
        peers[name] = {"ms": 1.0 if name == "other" else 4.0, "output": tmp_path / f"{name}.npy"}
    peers["twofold"]["ms"] = 2.0
    gpu.check(peers, 0.1, 0.02)
    assert {n: p.get("error", "")[:18] for n, p in peers.items()} == {
        "twofold": "", "torch": "", "other": "its losses change ", "worse": "its results are no", "far": "its results lie 5."
    }  # fmt: skip
    assert gpu.ratio({"peers": peers}) == 2.0


def test_a_dry_measurement_on_the_cpu(tmp_path: Path) -> None:
    """With PyTorch where it is installed; without it the row says so, and has our time."""
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "xla:cpu", "--networks", "lenet5", "--batch", "2"]
    command += ["--rounds", "1", "--turn", "0.02", "--peers", "torch", "--precisions", "fp32", "--modes", "train"]
    run = lambda *more: subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
    first = run()
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "gpu-results.json").read_text()
    peers = json.loads(text)["peers"]
    assert peers["twofold"]["ms"] > 0 and "error" not in peers["twofold"]
    if importlib.util.find_spec("torch"):
        assert peers["torch"]["ms"] > 0 and peers["torch"]["gap of changes"] < 1e-3 and "error" not in peers["torch"]
    else:
        assert "No module named" in peers["torch"]["error"]
    again = run("--write")
    assert again.returncode == 1 and "only rows of a GPU go into the docs" in again.stderr
    assert (tmp_path / "gpu-results.json").read_text() == text and "lenet5, 2 | train | fp32" in again.stdout
