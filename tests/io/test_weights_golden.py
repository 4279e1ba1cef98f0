"""Files that PyTorch 2.13 wrote (``data/make_golden_pth.py``), read without it."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from twofold.io.weights import match, read_weights, write_pth, write_safetensors

DATA = Path(__file__).parent / "data"


def expected() -> dict[str, np.ndarray]:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "conv.weight": np.linspace(-1, 1, 36, dtype=np.float32).reshape(4, 1, 3, 3),
        "rows": base[1:3],
        "transposed": base.T,
        "half": np.array([0.5, -2.0, 65504.0], np.float16),
        "brain": np.array([1.0, -3.0, 2.0**100], ml_dtypes.bfloat16),
        "mask": np.array([True, False, True]),
        "bytes": np.array([0, 127, 255], np.uint8),
        "bn.num_batches_tracked": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


def assert_same(found, wanted) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].flags.writeable
        np.testing.assert_allclose(found[name].astype(np.float64), array.astype(np.float64), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name, kind", [("golden_zip.pth", "pth"), ("golden_legacy.pth", "pth (legacy)")])
def test_golden_files_read_as_written(name, kind):
    weights = read_weights(DATA / name)
    assert_same(weights, expected())
    assert (weights.format, weights.unwrapped, weights.ignored) == (kind, (), ())
    assert np.shares_memory(weights["rows"], weights["transposed"])


def test_a_checkpoint_is_unwrapped_and_says_so():
    weights = read_weights(DATA / "golden_checkpoint.pth")
    assert_same(weights, {f"module.{name}": array for name, array in expected().items()})
    assert weights.unwrapped == ("state_dict",)
    assert weights.ignored == ("epoch", "best")
    report = match({name: (a.shape, a.dtype) for name, a in expected().items()}, weights)
    assert report.ok and report.renamed == {"DataParallel's prefix 'module.'": len(weights)}


def test_reading_does_not_import_torch():
    import subprocess

    code = (
        "import sys; from twofold.io.weights import read_weights; "
        f"read_weights({str(DATA / 'golden_zip.pth')!r}); read_weights({str(DATA / 'golden_legacy.pth')!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("suffix, write", [("safetensors", write_safetensors), ("pth", write_pth)])
def test_what_we_write_we_read(tmp_path, suffix, write):
    path = tmp_path / f"w.{suffix}"
    write(path, expected())
    first, weights = path.read_bytes(), read_weights(path)
    assert_same({name: weights[name] for name in expected()}, expected())
    write(path, expected())
    assert path.read_bytes() == first  # no clock, no chance in the file


def test_the_name_of_the_file_does_not_matter(tmp_path):
    path = tmp_path / "really_a_zip.safetensors"
    path.write_bytes((DATA / "golden_zip.pth").read_bytes())
    assert read_weights(path).format == "pth"
