"""Seeded mutations of sound files: an error of ours or arrays of supported dtypes, quickly, in little memory."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from twofold.base import dtypes
from twofold.base.errors import FormatError
from twofold.io.weights import read_weights, write_safetensors

DATA = Path(__file__).parent / "data"
MUTATIONS = 2_000
WORDS = [struct.pack("<I", 0xFFFFFFFF), struct.pack("<Q", 2**63 - 1), struct.pack("<Q", 2**64 - 1), bytes(8), b"\x7f"]


def safetensors_file(tmp_path: Path) -> bytes:
    write_safetensors(tmp_path / "seed", read_weights(DATA / "golden_zip.pth"), {"made": "by hand"})
    return (tmp_path / "seed").read_bytes()


def mutate(content: bytes, chance: random.Random) -> bytes:
    """One to four edits: a bit, a byte, a nasty word, a deletion, a duplication, a truncation."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, kind = chance.randrange(len(data)), chance.randrange(6)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            word = chance.choice(WORDS)
            data[at : at + len(word)] = word
        elif kind == 3:
            del data[at : at + chance.randint(1, 16)]
        elif kind == 4:
            data[at:at] = data[at : at + chance.randint(1, 64)]
        elif chance.random() < 0.2:
            del data[at:]
        if not data:
            break
    return bytes(data)


def mutated_pickle(content: bytes, chance: random.Random) -> bytes:
    """The archive with its data.pkl mutated and all checksums right again: past the outer defences."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            entry = old.read(name)
            new.writestr(name, mutate(entry, chance) if name.endswith("data.pkl") else entry)
    return stream.getvalue()


def mutated_start(content: bytes, chance: random.Random) -> bytes:
    """Only the first 1,100 bytes (header or pickles) mutated."""
    return mutate(content[:1100], chance) + content[1100:]


SEEDS = {
    "safetensors": (safetensors_file, mutate),
    "safetensors header": (safetensors_file, mutated_start),
    "zip": (lambda _: (DATA / "golden_zip.pth").read_bytes(), mutate),
    "zip, pickle": (lambda _: (DATA / "golden_zip.pth").read_bytes(), mutated_pickle),
    "zip, checkpoint pickle": (lambda _: (DATA / "golden_checkpoint.pth").read_bytes(), mutated_pickle),
    "legacy": (lambda _: (DATA / "golden_legacy.pth").read_bytes(), mutate),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_mutations_end_well(tmp_path, name):
    make, change = SEEDS[name]
    sound, chance, path = make(tmp_path), random.Random(name), tmp_path / "w"
    refused, mutations = 0, MUTATIONS if name != "zip, checkpoint pickle" else MUTATIONS // 4
    tracemalloc.start()
    try:
        for number in range(mutations):
            content = change(sound, chance)
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                for array in read_weights(path, verify=bool(number % 2)).values():
                    assert dtypes.as_dtype(array.dtype) in dtypes.ALL
                    np.array(array)  # every byte a view promises can be read
            except FormatError as error:
                assert str(path) in str(error) and len(str(error)) < 2000
                refused += 1
            assert tracemalloc.get_traced_memory()[1] - before < 8 * len(content) + (2 << 20)
    finally:
        tracemalloc.stop()
    assert refused > 0.2 * mutations
