"""Weight files made to run code, to lie about sizes, or to fill the memory: refused, cheaply, with a reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from twofold.base.errors import FormatError, UnsafeFileError
from twofold.io.weights import machine, read_weights, write_pth
from twofold.io.weights.write_pth import pickled

TENSOR = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
HEAD = b"\x80\x02"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n"


class Evil:
    """Pickles to a call of os.system."""

    def __reduce__(self):
        return (os.system, ("touch pwned",))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(
    storage=b"\x8a\x01\x06",
    offset=b"K\x00",
    shape=b"(K\x02K\x03t",
    strides=b"(K\x03K\x01t",
    kind=b"ctorch\nFloatStorage\n",
) -> bytes:
    """A dict with one tensor whose numbers (pickle instructions) can be replaced by lies."""
    identity = b"(" + text("storage") + kind + text("0") + text("cpu") + storage + b"tQ"
    return (
        HEAD + b"}" + text("w") + REBUILD + b"(" + identity + offset + shape + strides + b"\x89" + ORDERED + b")RtRs."
    )


def archive(described: bytes, storage: bytes = bytes(24), **options) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as file:
        file.writestr("a/data.pkl", described)
        file.writestr("a/data/0", storage)
    return stream.getvalue()


def read_bytes(tmp_path, content: bytes):
    (tmp_path / "w.pth").write_bytes(content)
    return read_weights(tmp_path / "w.pth")


def test_the_honest_file_reads(tmp_path):
    assert read_bytes(tmp_path, archive(tensor()))["w"].shape == (2, 3)


CODE = {
    "reduce, protocol 2": (pickle.dumps({"w": Evil()}, 2), "system"),
    "reduce, protocol 4": (pickle.dumps({"w": Evil()}, 4), "system"),
    "reduce, protocol 5": (pickle.dumps({"w": Evil()}, 5), "system"),
    "reduce, protocol 0": (pickle.dumps({"w": Evil()}, 0), "GLOBAL|system|refused"),
    "global": (HEAD + b"cos\nsystem\n.", "os.system"),
    "global builtins": (HEAD + b"cbuiltins\neval\n" + text("1") + b"\x85R.", "builtins.eval"),
    "stack global": (HEAD + text("os") + text("system") + b"\x93.", "os.system"),
    "stack global of numbers": (HEAD + b"K\x01K\x02\x93.", "no readable name"),
    "stack global, dotted": (HEAD + text("torch") + text("_utils._rebuild_tensor") + b"\x93.", "_rebuild_tensor"),
    "a neighbour of the allowed": (HEAD + b"ctorch._utils\n_import_dotted_name\n.", "_import_dotted_name"),
    "torch.load itself": (HEAD + b"ctorch\nload\n.", "torch.load"),
    "inst": (HEAD + b"(" + text("touch pwned") + b"ios\nsystem\n.", "INST.*os system"),
    "obj": (HEAD + b"(" + ORDERED + b"o.", "OBJ"),
    "newobj": (HEAD + ORDERED + b")\x81.", "NEWOBJ"),
    "newobj_ex": (HEAD + ORDERED + b")}\x92.", "NEWOBJ_EX"),
    "extension": (HEAD + b"\x82\x01.", "EXT1"),
    "text persistent id": (HEAD + b"Pstorage\n.", "PERSID"),
    "build on a function": (HEAD + REBUILD + b"}b.", "BUILD"),
    "build with slots": (HEAD + ORDERED + b")R}}\x86b.", "state"),
    "call of a dtype": (HEAD + b"ctorch\nfloat32\n)R.", "only mention"),
    "call of a string": (HEAD + text("os") + b")R.", "calls something"),
    "call with no tuple": (HEAD + REBUILD + b"]R.", "calls something"),
    "module container": (HEAD + b"(" + text("module") + b"NNNNtQ.", "model pickled whole"),
    "rebuild of a subclass": (
        HEAD + b"ctorch._tensor\n_rebuild_from_type_v2\n(" + REBUILD + ORDERED + b")}tR.",
        "subclass",
    ),
}


@pytest.mark.parametrize("described, message", CODE.values(), ids=CODE)
def test_code_is_refused_by_name_and_never_run(tmp_path, monkeypatch, described, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match=message) as caught:
        read_bytes(tmp_path, archive(described))
    if "BUILD" not in message:
        assert isinstance(caught.value, UnsafeFileError)
    assert not (tmp_path / "pwned").exists()


BIG = b"\x8a\x08" + struct.pack("<q", 2**62)
NEGATIVE = b"J" + struct.pack("<i", -1)
LIES = {
    "storage larger than its data": (tensor(storage=BIG), "should have .* bytes"),
    "storage smaller than its data": (tensor(storage=b"K\x05"), "should have 20 bytes"),
    "negative storage": (tensor(storage=NEGATIVE), "size of storage"),
    "storage beyond 64 bits": (tensor(storage=b"\x8a\x09" + b"\xff" * 8 + b"\x01"), "size of storage"),
    "storage size a string": (tensor(storage=text("6")), "size of storage"),
    "storage size a bool": (tensor(storage=b"\x88"), "size of storage"),
    "another element type": (tensor(kind=b"ctorch\nDoubleStorage\n"), "should have 48 bytes"),
    "unsupported element type": (tensor(kind=b"ctorch\nComplexFloatStorage\n"), "complex64 is not supported"),
    "storage type a string": (tensor(kind=text("torch.FloatStorage")), "no storage type"),
    "offset outside": (tensor(offset=b"K\x01"), "outside its storage"),
    "offset negative": (tensor(offset=NEGATIVE), "offset"),
    "offset huge": (tensor(offset=BIG), "outside its storage"),
    "shape outside": (tensor(shape=b"(K\x03K\x03t"), "outside its storage"),
    "shape huge": (tensor(shape=b"(" + BIG + BIG + b"t"), "total"),
    "shape huge and empty": (tensor(shape=b"(" + BIG + BIG + b"K\x00t", strides=b"(K\x01K\x01K\x01t"), "absurd"),
    "shape negative": (tensor(shape=b"(" + NEGATIVE + b"K\x03t"), "shape"),
    "shape no tuple": (tensor(shape=b"K\x06"), "shape"),
    "shape of 33 dims": (tensor(shape=b"(" + b"K\x01" * 33 + b"t", strides=b"(" + b"K\x01" * 33 + b"t"), "at most 32"),
    "strides outside": (tensor(strides=b"(K\x04K\x01t"), "outside its storage"),
    "strides negative": (tensor(strides=b"(" + NEGATIVE + b"K\x01t"), "strides"),
    "strides too few": (tensor(strides=b"(K\x01t"), "lengths differ"),
    "stride 0 to a terabyte": (tensor(shape=b"(" + BIG + b"K\x01t", strides=b"(K\x00K\x00t"), "total"),
    "another key": (tensor().replace(text("0"), text("1")), "no data for storage"),
    "a path as key": (tensor().replace(text("0"), text("../../etc/passwd")), "no data for storage"),
    "persistent id of two": (HEAD + text("storage") + text("0") + b"\x86Q.", "persistent id"),
    "persistent id a string": (HEAD + text("storage") + b"Q.", "persistent id"),
    "a tensor on a string": (HEAD + REBUILD + b"(" + text("x") + b"K\x00))\x89NtR.", "expected a storage"),
    "too many arguments": (HEAD + REBUILD + b"(NNNNNNNNNtR.", "9 arguments"),
}


@pytest.mark.parametrize("described, message", LIES.values(), ids=LIES)
def test_lies_about_sizes_are_found_before_memory_is_taken(tmp_path, described, message):
    content = archive(described)
    with pytest.raises(FormatError, match=message):
        read_bytes(tmp_path, content)


DAMAGE = {
    "no stop": (HEAD + b"}", "before its STOP"),
    "stack underflow": (HEAD + b"s.", "stack is empty"),
    "no mark": (HEAD + b"t.", "stack is empty"),
    "unknown memo": (HEAD + b"h\x05.", "never written"),
    "memo jump": (HEAD + b"Nr\xff\xff\xff\x7f.", "in order"),
    "unknown instruction": (HEAD + b"\xff.", "no pickle instruction"),
    "string beyond the end": (HEAD + b"X\xff\xff\xff\x7fab.", "byte 2"),
    "string of 2**63": (HEAD + b"\x8d" + b"\xff" * 7 + b"\x7fab.", "byte 2"),
    "long of 2 GB": (HEAD + b"\x8b\xff\xff\xff\x7fab.", "byte 2"),
    "long of negative size": (HEAD + b"\x8b\xff\xff\xff\xffab.", "byte 2"),
    "bad utf-8": (HEAD + b"X\x01\x00\x00\x00\xff.", "byte 2"),
    "dict key unhashable": (HEAD + b"}]Ns.", "dict key is a list"),
    "dict key a tuple": (HEAD + b"})Ns.", "dict key is a tuple"),
    "key without value": (HEAD + b"}(Nu.", "no value"),
    "items on a number": (HEAD + b"K\x01NNs.", "applied to a int"),
    "a list": (HEAD + b"].", "holds a list"),
    "an empty dict": (HEAD + b"}.", "no state dict"),
    "a number": (HEAD + b"K\x01.", "holds a int"),
}


@pytest.mark.parametrize("described, message", DAMAGE.values(), ids=DAMAGE)
def test_damaged_pickles_are_format_errors(tmp_path, described, message):
    with pytest.raises(FormatError, match=message):
        read_bytes(tmp_path, archive(described))


def doubling(levels: int) -> bytes:
    """Billion laughs: each tuple holds the one before twice."""
    return HEAD + b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))


PAIRS = b"](" + b"".join(b"K" + bytes([i]) + b"N\x86" for i in range(250)) + b"eq\x00"
BOMBS = {
    "billion laughs": (doubling(200) + b".", "holds a tuple"),
    "billion laughs as a key": (HEAD + b"}" + doubling(200)[2:] + b"Ns.", "dict key is a tuple"),
    "nested lists": (HEAD + b"]" * 20_000 + b"a" * 19_999 + b".", "holds a list"),
    "nested marks": (HEAD + b"(" * 1000 + b".", "nests deeper"),
    "a list in itself": (HEAD + b"]q\x00h\x00a.", "holds a list"),
    "a dict in itself": (HEAD + b"}q\x00" + text("model") + b"h\x00s.", "no state dict"),
    "copies of one dict": (HEAD + PAIRS + (ORDERED + b"h\x00\x85R") * 1000 + b".", "far more objects"),
    "a million lists": (HEAD + b"]" * 1_000_000 + b".", "far more objects"),
}


@pytest.mark.parametrize("described, message", BOMBS.values(), ids=BOMBS)
def test_bombs_do_not_grow(tmp_path, described, message):
    content = archive(described)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=message):
            read_bytes(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 30 * len(content) + (8 << 20)
    finally:
        tracemalloc.stop()


def test_zip_bombs_are_refused_and_fair_compression_is_not(tmp_path):
    size = 50_000_000
    lie = tensor(storage=b"J" + struct.pack("<i", size // 4))
    bomb = archive(lie, bytes(size), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeFileError, match=r"unpack from \d+ to 50000"):
            read_bytes(tmp_path, bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    fair = archive(tensor(), compression=zipfile.ZIP_DEFLATED)
    assert read_bytes(tmp_path, fair)["w"].shape == (2, 3)


def test_a_deflated_entry_that_unfolds_beyond_its_declared_size_is_refused(tmp_path):
    content = archive(tensor(), bytes(24) + bytes(10_000_000), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match=r"unpacks to another size|entries|unpack"):
        read_bytes(tmp_path, content.replace(struct.pack("<L", 10_000_024), struct.pack("<L", 24)))


ARCHIVES = {
    "no data.pkl": ({"a/other": b""}, "no PyTorch file"),
    "two data.pkl": ({"a/data.pkl": tensor(), "b/data.pkl": tensor()}, "2 files"),
    "TorchScript": ({"a/data.pkl": tensor(), "a/code/x.py": b"", "a/constants.pkl": b""}, "TorchScript"),
    "byte order": ({"a/data.pkl": tensor(), "a/data/0": bytes(24), "a/byteorder": b"middle"}, "byteorder"),
}


@pytest.mark.parametrize("entries, message", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_of_another_kind(tmp_path, entries, message):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    with pytest.raises(FormatError, match=message):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_and_wrong_checksums_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        file.writestr("a/data.pkl", tensor())
        file.writestr("a/data/0", bytes(24))
        file.writestr("a/data/0", bytes(24))
    with pytest.raises(UnsafeFileError, match="twice"):
        read_weights(tmp_path / "w.pth")
    damaged = bytearray(archive(tensor(), b"\x01" * 24))
    damaged[damaged.index(b"\x01" * 24) + 5] ^= 1
    with pytest.raises(FormatError, match="checksum"):
        read_bytes(tmp_path, bytes(damaged))
    assert read_weights(tmp_path / "w.pth", verify=False)["w"].shape == (2, 3)


def test_booleans_other_than_0_and_1_are_refused(tmp_path):
    lie = tensor(storage=b"K\x18", kind=b"ctorch\nBoolStorage\n")
    with pytest.raises(FormatError, match="boolean byte is 3"):
        read_bytes(tmp_path, archive(lie, b"\x03" * 24))


def test_many_copies_of_one_storage_are_refused(tmp_path):
    one = tensor()[3:-2]  # the key and the tensor, without the dict around them
    rows = b"".join(one.replace(text("w"), text(f"w{i}")) for i in range(20))
    storage = np.zeros(1_000_000, np.float32)
    write_pth(tmp_path / "w.pth", {"w": storage})
    described = pickled({f"w{i}": storage for i in range(20)})
    for i in range(20):
        described = described.replace(text(str(i)), text("0"))
    with pytest.raises(UnsafeFileError, match="repeated"):
        read_bytes(tmp_path, archive(described, storage.tobytes()))
    assert len(read_bytes(tmp_path, archive(HEAD + b"}(" + rows + b"u."))) == 20  # small ones are fine


HEADERS = {
    "no JSON": (b"{nonsense}", "JSON"),
    "a list": (b"{} ", "follow the header"),
    "unknown dtype": ({"w": {"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}}, "F8_E4M3"),
    "shape that lies": ({"w": {"dtype": "F32", "shape": [7], "data_offsets": [0, 24]}}, "takes 28 bytes"),
    "shape overflow": ({"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 24]}}, "takes"),
    "negative": ({"w": {"dtype": "F32", "shape": [-6], "data_offsets": [0, 24]}}, "0 to 2"),
    "float": ({"w": {"dtype": "F32", "shape": [6.0], "data_offsets": [0, 24]}}, "integer"),
    "bool": ({"w": {"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}}, "integer"),
    "hole": ({"w": {"dtype": "F32", "shape": [5], "data_offsets": [4, 24]}}, "starts at byte 4"),
    "overlap": (
        {
            "w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]},
            "v": {"dtype": "F32", "shape": [1], "data_offsets": [20, 24]},
        },
        "starts at byte 20",
    ),
    "short": ({"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}, "follow the header"),
    "out of range": ({"w": {"dtype": "F32", "shape": [60], "data_offsets": [0, 240]}}, "follow the header"),
    "empty and absurd": (
        {
            "w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]},
            "v": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [24, 24]},
        },
        "absurd",
    ),
    "extra field": ({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24], "x": 1}}, "expected an object"),
    "no object": ({"w": 3}, "expected an object"),
    "duplicate": (b'{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"w":{}}', "twice"),
    "metadata": ({"__metadata__": {"a": 1}}, "strings to strings"),
    "NaN": (b'{"w":NaN}', "NaN"),
    "huge number": (b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}', "JSON"),
    "deep": (b'{"w":' + b"[" * 50_000, "JSON"),
}


@pytest.mark.parametrize("header, message", HEADERS.values(), ids=HEADERS)
def test_safetensors_headers_are_validated(tmp_path, header, message):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(24))
    with pytest.raises(FormatError, match=message):
        read_weights(tmp_path / "w.safetensors")


def test_a_header_beyond_the_format_s_limit_is_refused_unread(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 150_000_000) + b"{")
    os.truncate(path, 200_000_000)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeFileError, match="150000000"):
            read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


FOREIGN = {
    "empty": (b"", "empty"),
    "npy": (b"\x93NUMPY\x01\x00", "NumPy"),
    "html": (b"<!DOCTYPE html><html>", "download"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "pickle": (pickle.dumps({"w": Evil()}, 2), "bare Python pickle"),
    "header longer than the file": (struct.pack("<Q", 2**60) + b"{}", "not a weight file"),
    "header too large": (struct.pack("<Q", 2**63) + b"{}", "not a weight file"),
}


@pytest.mark.parametrize("content, message", FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_named(tmp_path, content, message):
    with pytest.raises(FormatError, match=message):
        read_bytes(tmp_path, content)


def test_the_machine_lists_only_harmless_instructions():
    refused = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DUP", "NEXT_BUFFER"}
    assert not refused & set(machine.HANDLERS)


def test_the_stride_of_an_axis_of_one_says_nothing(tmp_path):
    huge = b"\x8a\x08" + (2**62).to_bytes(8, "little")
    found = read_bytes(tmp_path, archive(tensor(shape=b"(K\x01K\x06t", strides=b"(" + huge + b"K\x01t")))
    assert [np.asarray(value).shape for value in found.values()] == [(1, 6)]


def test_a_device_is_a_word(tmp_path):
    described = HEAD + b"ctorch\ndevice\n" + text("x" * 65) + b"K\x00\x86R."
    with pytest.raises(UnsafeFileError, match="65 characters"):
        read_bytes(tmp_path, archive(described))
