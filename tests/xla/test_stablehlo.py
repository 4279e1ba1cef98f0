"""StableHLO files: written from a model, read and run by a process that has none of its code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xla_training import Net, batches

import twofold as tw
from twofold.backends.xla.stablehlo import deserialize

pytest.importorskip("flatbuffers")
IMAGES = batches(1, 8)[0][0]


def exported(folder: Path, **options: Any) -> tuple[Path, np.ndarray]:
    """A file, and the model's own output for IMAGES."""
    tw.random.seed(0)
    with tw.device("reference"):
        model = Net().eval()
    expected = model(tw.tensor(IMAGES, device="reference")).numpy()
    tw.export(model, tw.tensor(IMAGES, device="reference"), folder / "net.stablehlo", **options)
    return folder / "net.stablehlo", expected


def test_a_model_runs_in_a_process_without_its_code_for_any_batch(tmp_path: Path) -> None:
    path, expected = exported(tmp_path)
    np.save(tmp_path / "x.npy", IMAGES)
    program = f"""
import numpy as np, twofold as tw
f = tw.load({str(path)!r})
x = np.load({str(tmp_path / "x.npy")!r})
np.save({str(tmp_path / "y.npy")!r}, np.concatenate([f(x[:3]).numpy(), f(x[3:]).numpy()]))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=2e-5, atol=2e-6)


def test_jax_reads_the_file_too(tmp_path: Path) -> None:
    import jax

    path, expected = exported(tmp_path, dynamic_batch=False)
    with jax.enable_x64(True):
        (got,) = jax.export.deserialize(bytearray(path.read_bytes())).call(IMAGES)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    f = tw.load(exported(tmp_path)[0])
    with pytest.raises(tw.ShapeError, match=r"argument 0 is f32\[2,3,8,7\], expected float32\[N,3,8,8\]"):
        f(np.zeros((2, 3, 8, 7), np.float32))
    with pytest.raises(tw.ShapeError, match="got 2 arguments, expected 1"):
        f(IMAGES, IMAGES)
    with pytest.raises(tw.ArgumentError, match="run on XLA's devices"):
        tw.load(exported(tmp_path)[0], devices="reference")


def test_a_function_that_assigns_state_is_refused(tmp_path: Path) -> None:
    count = tw.Variable(np.zeros((), np.float32), name="count")
    with pytest.raises(tw.ArgumentError, match=r"assigns count; .* export to .onnx"):
        tw.export(lambda x: count.assign(count + x.sum()), tw.ones((2,)), tmp_path / "f.stablehlo")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path, _ = exported(tmp_path, dynamic_batch=False)
    data = path.read_bytes()
    flipped = data[:900] + b"\xff" * 40 + data[940:]
    path.write_bytes({"empty": b"", "text": b"hello", "cut": data[:500], "flipped": flipped}[damage])
    with pytest.raises(tw.FormatError, match=r"net\.stablehlo: not a StableHLO program"):
        tw.load(path)


def test_a_program_that_calls_out_is_refused() -> None:
    import jax
    from jax import export

    call = jax.ffi.ffi_call("run_anything", jax.ShapeDtypeStruct((2,), np.float32))
    allowed = [export.DisabledSafetyCheck.custom_call("run_anything")]
    data = export.export(jax.jit(lambda x: call(x)), disabled_checks=allowed)(np.ones(2, np.float32)).serialize()
    with pytest.raises(tw.UnsafeFileError, match="calls out to run_anything"):
        deserialize(bytes(data))
