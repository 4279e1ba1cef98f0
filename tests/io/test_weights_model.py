"""Matching a file with a model, the report, and loading into a model."""

from __future__ import annotations

import logging
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import twofold as tw
from twofold.base.errors import FormatError, WeightsError
from twofold.io.weights import load_weights, match, read_weights, save_weights, write_pth, write_safetensors
from twofold.io.weights.source import read_out


class Value:
    """The least a state dict's value must have."""

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def numpy(self):
        return self.array


class Model:
    """A model as ``load_weights`` sees it."""

    def __init__(self, **arrays):
        self.state = {name.replace("__", "."): Value(array) for name, array in arrays.items()}

    def state_dict(self, keep_vars=False):
        return dict(self.state)

    def load_state_dict(self, state):
        assert set(state) == set(self.state)
        self.state = {name: value if isinstance(value, Value) else Value(value) for name, value in state.items()}

    def __getitem__(self, name):
        return self.state[name].array


def net(classes=10, fill=0.0):
    return Model(
        conv__weight=np.full((4, 3, 3, 3), fill, np.float32),
        bn__num_batches_tracked=np.array(int(fill)),
        fc__weight=np.full((classes, 4), fill, np.float32),
        fc__bias=np.full(classes, fill, np.float32),
    )


F32 = lambda *shape: np.zeros(shape, np.float32)
GROUPS = {
    "matched": ({"w": ((2, 3), "float32")}, {"w": F32(2, 3)}, {"matched": 1}, True),
    "converted": ({"w": ((2,), "float32")}, {"w": np.zeros(2, np.float16)}, {"matched": 1, "converted": 1}, True),
    "missing": ({"w": ((2,), "float32")}, {}, {"missing": 1}, False),
    "unexpected": ({}, {"w": F32(2)}, {"unexpected": 1}, False),
    "reshaped": ({"w": ((2,), "float32")}, {"w": F32(3)}, {"reshaped": 1}, False),
    "reshaped, same size": ({"w": ((2, 3), "float32")}, {"w": F32(3, 2)}, {"reshaped": 1}, False),
    "retyped": ({"w": ((2,), "float32")}, {"w": np.zeros(2, np.int64)}, {"retyped": 1}, False),
    "retyped bool": ({"w": ((2,), "uint8")}, {"w": np.zeros(2, bool)}, {"retyped": 1}, False),
    "counter absent": ({"bn.num_batches_tracked": ((), "int64")}, {}, {"absent": 1}, True),
}


@pytest.mark.parametrize("expected, found, counts, ok", GROUPS.values(), ids=GROUPS)
def test_each_group(expected, found, counts, ok):
    report = match(expected, found)
    groups = ("matched", *report.GROUPS)
    assert {group: len(getattr(report, group)) for group in groups if getattr(report, group)} == counts
    assert report.ok is ok


RENAMED = {
    "module.conv1.weight": "conv1.weight",
    "_orig_mod.conv1.weight": "conv1.weight",
    "model.conv1.weight": "conv1.weight",
    "module._orig_mod.conv1.weight": "conv1.weight",
    "features.denseblock1.denselayer1.norm.1.weight": "features.denseblock1.denselayer1.norm1.weight",
    "module.features.denseblock4.denselayer16.conv.2.weight": "features.denseblock4.denselayer16.conv2.weight",
    "bn.gamma": "bn.weight",
    "bn.beta": "bn.bias",
}


@pytest.mark.parametrize("source, name", RENAMED.items())
def test_renames_are_found_and_reported(source, name):
    report = match({name: ((2,), "float32")}, {source: F32(2)})
    assert report.ok and report.matched[0][:2] == (name, source)
    assert "renamed 1 for" in str(report)


def test_an_exact_name_wins_over_a_rename():
    report = match({"w": ((2,), "float32")}, {"module.w": F32(2), "w": F32(2)})
    assert [row.source for row in report.matched] == ["w"]
    assert [row.source for row in report.unexpected] == ["module.w"]
    report = match({"conv.1.weight": ((2,), "float32")}, {"conv.1.weight": F32(2)})
    assert not report.renamed


def test_the_table_is_readable_and_bounded():
    expected = {f"layer{i}.weight": ((2, 3), "float32") for i in range(30)} | {"fc.weight": ((10, 4), "float32")}
    printed = str(match(expected, {"fc.weight": F32(1000, 4), "aux.x": F32(1)}, ignore=["aux.*"]))
    assert printed.splitlines()[0] == "weights: 30 missing, 1 reshaped, 1 ignored"
    assert "  fc.weight  model (10, 4) float32   file (1000, 4) float32" in printed
    assert "... and 18 more" in printed
    assert len(printed.splitlines()) < 25


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_save_and_load_round_trip(tmp_path, suffix, caplog):
    path = tmp_path / f"w.{suffix}"
    save_weights(net(fill=2), path)
    model = net()
    with caplog.at_level(logging.INFO, "twofold"):
        report = load_weights(model, path)
    assert report.ok and len(report.matched) == 4
    assert "4 matched" in caplog.text
    for name, array in read_weights(path).items():
        np.testing.assert_array_equal(model[name], array)
    assert model["bn.num_batches_tracked"] == 2


def test_another_num_classes_is_an_error_that_names_the_choice_and_then_a_choice(tmp_path, caplog):
    write_pth(tmp_path / "w.pth", {name: value.array for name, value in net(1000, fill=1).state.items()})
    model = net(10)
    with pytest.raises(WeightsError, match=r"(?s)fc\.bias +model \(10,\) float32 +file \(1000,\).*reshaped='keep'"):
        load_weights(model, tmp_path / "w.pth")
    assert model["conv.weight"].max() == 0  # nothing was loaded
    report = load_weights(model, tmp_path / "w.pth", reshaped="keep")
    assert [row.name for row in report.reshaped] == ["fc.weight", "fc.bias"]
    assert "2 reshaped" in caplog.text  # a warning, unasked
    assert model["conv.weight"].min() == 1 and model["fc.weight"].shape == (10, 4) and model["fc.weight"].max() == 0


def test_missing_and_unexpected_are_errors_unless_not_strict(tmp_path, caplog):
    write_safetensors(tmp_path / "w", {"conv.weight": np.ones((4, 3, 3, 3), np.float16), "aux.weight": F32(1)})
    with pytest.raises(WeightsError, match=r"(?s)2 missing, 1 unexpected.*strict=False"):
        load_weights(net(), tmp_path / "w")
    model = net()
    report = load_weights(model, tmp_path / "w", strict=False)
    assert not report.ok and model["conv.weight"].dtype == np.float32 and model["conv.weight"].min() == 1
    assert "2 missing, 1 unexpected" in caplog.text
    report = load_weights(net(), tmp_path / "w", ignore=["aux.*", "fc.*"])
    assert report.ok and len(report.ignored) == 3


def test_another_network_s_file_is_an_error_even_when_not_strict(tmp_path):
    write_safetensors(tmp_path / "w", {"other": F32(1)})
    with pytest.raises(WeightsError, match="another network"):
        load_weights(net(), tmp_path / "w", strict=False)


@pytest.mark.parametrize(
    "array, target",
    [(np.array([1e5], np.float32), np.float16), (np.array([2.0**100], ml_dtypes.bfloat16), np.float16)],
)
def test_values_that_overflow_on_conversion_are_an_error(tmp_path, array, target):
    write_safetensors(tmp_path / "w", {"w": array})
    with pytest.raises(WeightsError, match="overflow"):
        load_weights(Model(w=np.zeros(1, target)), tmp_path / "w")


def test_integers_that_do_not_fit_are_an_error(tmp_path):
    write_safetensors(tmp_path / "w", {"w": np.array([300])})
    with pytest.raises(WeightsError, match="do not fit"):
        load_weights(Model(w=np.zeros(1, np.uint8)), tmp_path / "w")


def test_wrong_arguments_say_what_is_expected(tmp_path):
    with pytest.raises(FormatError, match=r"\.safetensors, \.pth"):
        save_weights(net(), tmp_path / "w.npz")
    with pytest.raises(FormatError, match="metadata"):
        save_weights(net(), tmp_path / "w.pth", metadata={"a": "b"})
    with pytest.raises(ValueError, match="'error' or 'keep'"):
        load_weights(net(), tmp_path / "w", reshaped="yes")
    with pytest.raises(FileNotFoundError):
        load_weights(net(), tmp_path / "absent.pth")


def test_large_files_are_mapped_and_the_file_stays_unchanged(tmp_path):
    import tracemalloc

    big = np.ones((5 << 20,), np.float32)
    for write, name in ((write_safetensors, "w.safetensors"), (write_pth, "w.pth")):
        write(tmp_path / name, {"w": big})
        tracemalloc.start()
        weights = read_weights(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < big.nbytes // 10
        weights["w"][:] = 2
        assert weights["w"].max() == 2 and read_weights(tmp_path / name)["w"].max() == 1


def test_loading_holds_one_tensor_twice_and_no_more(tmp_path):
    """Tensors come one by one from the mapped file, straight into the array that the model keeps."""
    layers, size = 8, 1 << 20
    model = tw.nn.Sequential(*(tw.nn.Linear(1024, 1024, bias=False) for _ in range(layers)))
    wanted = {f"{i}.weight": np.full((1024, 1024), i, np.float32) for i in range(layers)}
    write_safetensors(tmp_path / "w.safetensors", wanted)
    tracemalloc.start()
    try:
        load_weights(model, tmp_path / "w.safetensors")
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - size * 4 * layers < 1 << 20  # the new arrays; the old ones were made before
    assert peak < size * 4 * (layers + 1)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), wanted[name])


def test_reading_out_gives_a_copy_in_another_dtype_and_leaves_the_file(tmp_path):
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((3, 2_100_000)).astype(np.float32)  # more than one block, no whole number of pages
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"small": np.ones(3, np.float32), "w": wanted})
    before = path.read_bytes()
    array = read_weights(path)["w"]
    np.testing.assert_array_equal(read_out(array, np.dtype(np.float32)), wanted)
    np.testing.assert_array_equal(read_out(array.T, np.dtype(np.float64)), wanted.T.astype(np.float64))
    copy = read_out(array, np.dtype(np.float32))
    copy[:] = 0
    np.testing.assert_array_equal(array, wanted)  # pages given back come from the file again
    assert path.read_bytes() == before
