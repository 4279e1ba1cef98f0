"""Scalar expressions: what is computed for one element. Hash-consed: equal expressions are one object.

    Expr = const(dtype, value) | load(buffer, address, guard) | index(affine) | range(affine, low, high)
         | acc(k) | op(name, args)

A ``load`` with a guard reads only where the guard (a bool expression) holds, and gives 0 elsewhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from twofold.backends.cpu.loops.index import Affine, Var
from twofold.base.dtypes import DType, bool_, int64


class Buffer:
    """A block of elements that nests read and write; where it lies is decided later. ``name`` is for readers."""

    __slots__ = ("dtype", "name", "size")

    def __init__(self, dtype: DType, size: int, name: str = "buffer"):
        self.dtype, self.size, self.name = dtype, size, name

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"{self.name}:{self.dtype.short}[{self.size}]"


class Expr:
    """One expression; make it with the functions below. ``vars`` are the loop variables it depends on."""

    __slots__ = ("__weakref__", "args", "dtype", "extra", "kind", "vars")

    def __init__(self, kind: str, dtype: DType, args: tuple[Expr, ...], extra: Any, variables: frozenset[Any]):
        self.kind, self.dtype, self.args, self.extra, self.vars = kind, dtype, args, extra, variables

    def substitute(self, values: dict[Var, Affine]) -> Expr:
        """With loop variables replaced."""
        if self.vars.isdisjoint(values):
            return self
        return _map(self, lambda a: a.substitute(values), {})

    def __repr__(self) -> str:
        if self.kind == "const":
            return f"{self.extra}"
        if self.kind == "load":
            return f"{self.extra[0].name}[{self.extra[1]}]" + (" if " + repr(self.args[0]) if self.args else "")
        if self.kind in ("index", "range"):
            return f"{self.kind}{self.extra}"
        name = self.extra if self.kind == "op" else self.kind
        return f"{name}({', '.join(map(repr, self.args))})" if self.args else f"{name}{self.extra}"


_interned: weakref.WeakValueDictionary[Any, Expr] = weakref.WeakValueDictionary()


def _make(kind: str, dtype: DType, args: tuple[Expr, ...], extra: Any, own: frozenset[Any] = frozenset()) -> Expr:
    key = (kind, dtype.name, args, extra)
    found = _interned.get(key)
    if found is None:
        found = _interned[key] = Expr(kind, dtype, args, extra, own.union(*(a.vars for a in args)))
    return found


def const(dtype: DType, value: Any) -> Expr:
    """A number; floats are told apart by their bits, so that -0.0 and NaN stay what they are."""
    number = bool(value) if dtype is bool_ else float(value).hex() if dtype.is_floating else int(value)
    return _make("const", dtype, (), number)


def load(buffer: Buffer, address: Affine, guard: Expr | None = None) -> Expr:
    """The element at ``address``; 0 where the guard does not hold."""
    return _make("load", buffer.dtype, () if guard is None else (guard,), (buffer, address), address.vars)


def op(name: str, dtype: DType, *args: Expr) -> Expr:
    """An elementwise op of the op table (or an internal one) on scalars."""
    return _make("op", dtype, args, name)


def converted(e: Expr, dtype: DType) -> Expr:
    """A cast where one is needed."""
    return e if e.dtype is dtype else op("cast", dtype, e)


def from_index(affine: Affine, dtype: DType = int64) -> Expr:
    """An index as a number."""
    return _make("index", dtype, (), affine, affine.vars)


def in_range(affine: Affine, low: int, high: int) -> Expr:
    """low <= affine < high, decided now if the ranges of the variables tell."""
    least, most = affine.range
    if low <= least and most < high:
        return const(bool_, True)
    if most < low or least >= high:
        return const(bool_, False)
    return _make("range", bool_, (), (affine, low, high), affine.vars)


def acc(k: int, dtype: DType) -> Expr:
    """Accumulator ``k`` of the nest."""
    return _make("acc", dtype, (), k, frozenset((f"acc{k}",)))


TRUE = const(bool_, True)
FALSE = const(bool_, False)


def both(a: Expr, b: Expr) -> Expr:
    """a and b, without what is certain."""
    if a is FALSE or b is FALSE:
        return FALSE
    if a is TRUE or a is b:
        return b
    return a if b is TRUE else op("logical_and", bool_, a, b)


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    """``a`` where the condition holds, else ``b``."""
    if condition is TRUE:
        return a
    return b if condition is FALSE else op("where", a.dtype, condition, a, b)


def with_guard(e: Expr, guard: Expr) -> Expr:
    """``e`` reading memory only where ``guard`` holds."""
    if guard is TRUE:
        return e
    return rewrite_loads(e, lambda l: load(l.extra[0], l.extra[1], both(guard, l.args[0]) if l.args else guard))


def rewrite_loads(e: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """``e`` with every load replaced by ``change(load)``."""
    return _walk(e, change, {})


def _walk(e: Expr, change: Callable[[Expr], Expr], seen: dict[Expr, Expr]) -> Expr:
    done = seen.get(e)
    if done is None:
        args = tuple(_walk(a, change, seen) for a in e.args)
        extra = e.extra
        if e.kind == "load":
            extra = (e.extra[0], _walk_index(e.extra[1], change, seen))
        elif e.kind == "index":
            extra = _walk_index(e.extra, change, seen)
        elif e.kind == "range":
            extra = (_walk_index(e.extra[0], change, seen), *e.extra[1:])
        same = args == e.args and extra is e.extra
        out = e if same else _make(e.kind, e.dtype, args, extra, _own(e.kind, extra))
        done = seen[e] = change(out) if e.kind == "load" else out
    return done


def _walk_index(a: Affine, change: Callable[[Expr], Expr], seen: dict[Expr, Expr]) -> Affine:
    """Loads that are themselves indices are rewritten too."""
    from twofold.backends.cpu.loops.index import Div, Dyn, Mod, constant, dynamic, floordiv, mod

    if not any(isinstance(t, (Dyn, Div, Mod)) for t in a.terms):
        return a
    total, changed = constant(a.const), False
    for atom, c in a.terms.items():
        if isinstance(atom, Dyn):
            inner = _walk(atom.expr, change, seen)
            new = dynamic(inner, atom.size)
            changed |= inner is not atom.expr
        elif isinstance(atom, (Div, Mod)):
            inner_affine = _walk_index(atom.inner, change, seen)
            changed |= inner_affine is not atom.inner
            new = (floordiv if isinstance(atom, Div) else mod)(inner_affine, atom.divisor)
        else:
            new = Affine({atom: 1})
        total = total + new * c
    return total if changed else a


def _own(kind: str, extra: Any) -> frozenset[Any]:
    if kind == "load":
        return extra[1].vars
    if kind == "index":
        return extra.vars
    return extra[0].vars if kind == "range" else frozenset((f"acc{extra}",)) if kind == "acc" else frozenset()


def _map(e: Expr, index: Callable[[Affine], Affine], seen: dict[Expr, Expr]) -> Expr:
    """``e`` with every index mapped."""
    done = seen.get(e)
    if done is None:
        args = tuple(_map(a, index, seen) for a in e.args)
        if e.kind == "load":
            done = load(e.extra[0], index(e.extra[1]), *args)
        elif e.kind == "index":
            done = from_index(index(e.extra), e.dtype)
        elif e.kind == "range":
            done = in_range(index(e.extra[0]), *e.extra[1:])
        else:
            done = e if args == e.args else _make(e.kind, e.dtype, args, e.extra, _own(e.kind, e.extra))
        seen[e] = done
    return done


def loads(e: Expr, seen: set[Expr] | None = None) -> list[Expr]:
    """Every load in ``e``, those inside indices included."""
    seen = set() if seen is None else seen
    found: list[Expr] = []

    def visit(x: Expr) -> None:
        if x in seen:
            return
        seen.add(x)
        for a in x.args:
            visit(a)
        for affine in affines(x):
            for inner in computed(affine):
                visit(inner)
        if x.kind == "load":
            found.append(x)

    visit(e)
    return found


_WORK = dict.fromkeys(
    ("abs", "add", "cast", "equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_not",
     "logical_or", "maximum", "minimum", "multiply", "negative", "not_equal", "relu", "square", "subtract", "where"), 1,
) | {"divide": 4, "reciprocal": 4, "sqrt": 4}  # fmt: skip
_CALL = 16  # what is not a few instructions


def work(e: Expr) -> int:
    """About how many instructions an element takes, memory aside."""
    seen: set[Expr] = set()

    def visit(x: Expr) -> int:
        if x in seen:
            return 0
        seen.add(x)
        own = _WORK.get(x.extra, _CALL) if x.kind == "op" else _CALL if any(map(computed, affines(x))) else 0
        return own + sum(map(visit, x.args))

    return visit(e)


def affines(e: Expr) -> tuple[Affine, ...]:
    """The indices standing in this one expression (not in its arguments)."""
    if e.kind == "load":
        return (e.extra[1],)
    if e.kind == "index":
        return (e.extra,)
    return (e.extra[0],) if e.kind == "range" else ()


def computed(a: Affine) -> list[Expr]:
    """The expressions inside an index."""
    from twofold.backends.cpu.loops.index import Div, Dyn, Mod

    out: list[Expr] = []
    for atom in a.terms:
        if isinstance(atom, Dyn):
            out.append(atom.expr)
        elif isinstance(atom, (Div, Mod)):
            out += computed(atom.inner)
    return out
