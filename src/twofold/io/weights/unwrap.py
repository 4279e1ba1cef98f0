"""Find the state dict in a checkpoint: ``{"epoch": 3, "state_dict": {...}, "optimizer": ...}`` and its relatives."""

from __future__ import annotations

from typing import Any, NamedTuple

from twofold.base.errors import FormatError
from twofold.io.weights.refs import TensorRef

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "model_ema",
    "ema",
)
MAX_DEPTH = 4


class Found(NamedTuple):
    """The tensors, the path of keys that led to them, and the names of what lay beside them and was left."""

    tensors: dict[str, TensorRef]
    path: tuple[str, ...]
    ignored: tuple[str, ...]


def find_state_dict(tree: Any, key: str | None = None) -> Found:
    """The dict of tensors in an unpickled tree; ``key`` ("ema", "a/b") chooses among several."""
    path: tuple[str, ...] = ()
    ignored: list[str] = []
    for asked in key.split("/") if key else ():
        if not isinstance(tree, dict) or asked not in tree:
            raise FormatError(f"the file has no entry {asked!r} to unwrap; it has {_listing(tree)}")
        path, tree = (*path, asked), tree[asked]
    while not _holds_tensors(tree):
        step = _wrapper(tree)
        if step is None or len(path) >= MAX_DEPTH:
            raise FormatError(f"no state dict found; the file holds {_listing(tree)}. Name the entry with key=")
        ignored += [_text((*path, k)) for k in tree if k != step]
        path, tree = (*path, step), tree[step]
    tensors = {k: v for k, v in tree.items() if isinstance(v, TensorRef) and type(k) is str}
    ignored += [_text((*path, k)) for k in tree if k not in tensors]
    return Found(tensors, path, tuple(ignored))


def _holds_tensors(tree: Any) -> bool:
    return isinstance(tree, dict) and any(isinstance(v, TensorRef) for v in tree.values())


def _wrapper(tree: Any) -> str | None:
    """The key to go down by: a usual one, else the only dict there is."""
    if not isinstance(tree, dict):
        return None
    inner = [k for k, v in tree.items() if isinstance(v, dict) and v and type(k) is str]
    usual = [k for k in WRAPPERS if k in inner]
    return usual[0] if usual else inner[0] if len(inner) == 1 else None


def _text(path: tuple) -> str:
    return "/".join(str(step)[:60] for step in path)


def _listing(tree: Any) -> str:
    if isinstance(tree, dict):
        return "a dict with " + (", ".join(repr(str(k)[:40]) for k in list(tree)[:12]) or "nothing")
    if isinstance(tree, TensorRef):
        return "one tensor without a name"
    return f"a {type(tree).__name__}"
