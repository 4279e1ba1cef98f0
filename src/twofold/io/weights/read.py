"""``read_weights``: one entry for all formats, chosen by what the file holds and not by its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from twofold.base.errors import FormatError
from twofold.io.weights import pth, safetensors
from twofold.io.weights.refs import check_total
from twofold.io.weights.source import ByteSource
from twofold.io.weights.unwrap import find_state_dict


class Weights(dict[str, np.ndarray]):
    """Arrays by name, and where they came from.

    ``format``: "safetensors", "pth" or "pth (legacy)". ``unwrapped``: keys of the checkpoint that led to the state
    dict, outermost first. ``ignored``: what lay beside the tensors and was left. ``metadata``: safetensors' strings.
    """

    path: Path
    format: str = ""
    unwrapped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    metadata: dict[str, str]


def read_weights(path: str | os.PathLike, *, key: str | None = None, verify: bool = True) -> Weights:
    """Read a weight file (safetensors, PyTorch zip, PyTorch legacy) into NumPy arrays; no torch, no code is run.

    A checkpoint such as ``{"epoch": 3, "state_dict": {...}}`` is unwrapped to its state dict (see
    ``Weights.unwrapped``); ``key`` chooses another entry, "a/b" one inside another. ``verify`` compares the checksums
    that a .pth has. Arrays of one storage share memory as in PyTorch. Those of files over 16 MB are views of the mapped
    file: writable (the file is never changed), but the file must not be truncated in place while they are alive.

    >>> from twofold.io.weights import write_pth
    >>> write_pth("w.pth", {"fc.weight": np.zeros((10, 4), np.float32)})
    >>> read_weights("w.pth")["fc.weight"].shape
    (10, 4)

    Raises FormatError for damaged or foreign files, UnsafeFileError for files that ask for code or absurd sizes.
    """
    try:
        with ByteSource(path) as source:
            return _read(source, key, verify)
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def _read(source: ByteSource, key: str | None, verify: bool) -> Weights:
    head = source.data[:16]
    if head.startswith(pth.ZIP_MAGIC):
        return _from_pickle(source, "pth", pth.read_zip(source, verify), key)
    if pth.looks_legacy(source):
        return _from_pickle(source, "pth (legacy)", pth.read_legacy(source), key)
    if not safetensors.looks_like(source):
        raise FormatError(_explain(head))
    if key is not None:
        raise FormatError(f"key={key!r} chooses an entry of a PyTorch checkpoint; safetensors files have no nesting")
    arrays, metadata = safetensors.read(source)
    weights = Weights(arrays)
    weights.path, weights.format, weights.metadata = source.path, "safetensors", metadata
    return weights


def _from_pickle(source: ByteSource, kind: str, content: pth.Unpickled, key: str | None) -> Weights:
    found = find_state_dict(content.tree, key)
    check_total(found.tensors.items(), source.size)
    weights = Weights({name: content.array(tensor, f"tensor {name[:100]!r}") for name, tensor in found.tensors.items()})
    weights.path, weights.format, weights.metadata = source.path, kind, {}
    weights.unwrapped, weights.ignored = found.path, found.ignored
    return weights


FOREIGN = {
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x08": "perhaps an ONNX file; load that with tw.load",
    b"<": "an HTML or XML page: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x80": "a bare Python pickle, which can run code: it is not read",
}


def _explain(head: bytes) -> str:
    """What a file that is none of ours seems to be, by its first bytes."""
    guess = next((text for magic, text in FOREIGN.items() if head.startswith(magic[:16])), "unknown")
    return (
        f"not a weight file: it starts with {head[:8]!r} ({guess}); expected safetensors, or PyTorch's .pth in its zip "
        "or legacy format"
    )
