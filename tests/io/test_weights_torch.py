"""PyTorch itself as the oracle, both ways (left out where torch is not installed)."""

from __future__ import annotations

import numpy as np
import pytest

from twofold.io.weights import read_weights, write_pth, write_safetensors

torch = pytest.importorskip("torch")

DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64".split()  # noqa: SIM905
FORMATS = [
    {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    for zipped in (True, False)
    for protocol in (2, 3, 4, 5)
]


def state_dict():
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    tensors = {name: (torch.rand(3, 4) * 5).to(getattr(torch, name)) for name in DTYPES}
    views = {"rows": base[1:3], "transposed": base.T, "column": base[:, 2], "scalar": torch.tensor(3.0)}
    return tensors | views | {"empty": torch.zeros(0, 2), "parameter": torch.nn.Parameter(torch.ones(2))}


def assert_same(array: np.ndarray, tensor) -> None:
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert array.shape == tuple(tensor.shape)
    assert array.astype(np.float64).tolist() == tensor.detach().double().tolist()


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_reads_what_torch_saves(tmp_path, options):
    tensors = state_dict()
    torch.save(tensors, tmp_path / "w.pth", **options)
    weights = read_weights(tmp_path / "w.pth")
    assert list(weights) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(weights[name], tensor)
    assert np.shares_memory(weights["rows"], weights["transposed"])


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_a_module_state_with_metadata_and_attributes(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    module[0].weight.note = "a Python attribute, saved through _rebuild_from_type_v2"
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    content = {"model": module.state_dict(keep_vars=True), "optimizer": optimizer.state_dict(), "epoch": 2}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / "w.pth")
    assert weights.unwrapped == ("model",)
    for name, tensor in module.state_dict().items():
        assert_same(weights[name], tensor)


def test_reads_big_endian_files(tmp_path):
    torch.save(state_dict(), tmp_path / "w.pth")
    import zipfile

    swapped = tmp_path / "big.pth"
    widths = dict(zip("0123456789", (8, 4, 2, 2, 8, 4, 2, 1, 1, 1))) | {"10": 2, "11": 4, "12": 8}
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(swapped, "w") as new:
        for name in old.namelist():
            content, key = old.read(name), name.rpartition("/data/")[2]
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                width = widths.get(key, 4)
                content = np.frombuffer(content, np.uint8).reshape(-1, width)[:, ::-1].tobytes()
            new.writestr(name, content)
    weights = read_weights(swapped)
    for name, tensor in state_dict().items():
        assert_same(weights[name], tensor)


def test_checksums_never_computed_are_accepted(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state_dict(), tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_weights(tmp_path / "w.pth")["float32"], state_dict()["float32"])


def test_torch_loads_what_we_write(tmp_path):
    torch.save(state_dict(), tmp_path / "w.pth")
    arrays = dict(read_weights(tmp_path / "w.pth"))
    write_pth(tmp_path / "ours.pth", arrays)
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)
    write_safetensors(tmp_path / "ours.safetensors", arrays, {"format": "pt"})
    from safetensors.torch import load_file

    theirs = load_file(tmp_path / "ours.safetensors")
    for name, tensor in state_dict().items():
        for found in (ours[name], theirs[name]):
            assert found.dtype == tensor.dtype and torch.equal(found.double(), tensor.detach().double())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused_with_advice(tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    from twofold.base.errors import UnsafeFileError

    with pytest.raises(UnsafeFileError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_a_dense_description_stays_inside_the_object_budget(tmp_path, options):
    torch.save({str(i): torch.zeros(0) for i in range(5000)}, tmp_path / "w.pth", **options)
    assert len(read_weights(tmp_path / "w.pth")) == 5000
