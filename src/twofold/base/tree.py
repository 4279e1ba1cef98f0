"""Nested structures: tuples, lists, dicts and None hold leaves; everything else is a leaf.

    leaves, structure = flatten((x, {"a": y}))        structure is hashable and compares by form
    unflatten(structure, leaves)                      the same nest around other leaves
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Structure(NamedTuple):
    """The form of a nest: its kind (a type, or ``leaf``), dict keys, and children."""

    kind: Any
    keys: tuple
    children: tuple[Structure, ...]


_LEAF = Structure("leaf", (), ())


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """Leaves in order (dicts by insertion), and the structure around them."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Any, leaves: list[Any]) -> Structure:
    if tree is None:
        return Structure(None, (), ())
    if isinstance(tree, dict):
        return Structure(dict, tuple(tree), tuple(_flatten(v, leaves) for v in tree.values()))
    if isinstance(tree, (tuple, list)):
        return Structure(type(tree), (), tuple(_flatten(v, leaves) for v in tree))
    leaves.append(tree)
    return _LEAF


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The nest of this structure around ``leaves``."""
    return _build(structure, iter(leaves))


def _build(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure.kind == "leaf":
        return next(leaves)
    if structure.kind is None:
        return None
    children = [_build(c, leaves) for c in structure.children]
    if structure.kind is dict:
        return dict(zip(structure.keys, children))
    return structure.kind(*children) if hasattr(structure.kind, "_fields") else structure.kind(children)


def paths(structure: Structure, root: str = "") -> list[str]:
    """A name for each leaf, as one would write it: ``x``, ``batch[0]``, ``batch['label']``."""
    if structure.kind == "leaf":
        return [root]
    keys: Sequence[Any] = structure.keys if structure.kind is dict else range(len(structure.children))
    return [path for key, child in zip(keys, structure.children) for path in paths(child, f"{root}[{key!r}]")]


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """``function`` of every leaf, in the same nest."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [function(leaf) for leaf in leaves])
