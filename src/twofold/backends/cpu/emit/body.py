"""Expressions as instructions, each computed once, at the outermost loop at which its variables are known.

``Body`` keeps a stack of caches, one for every open block; what is computed inside a block is forgotten when it closes.
With a vector loop, a value that depends on it is a vector (copy ``u`` of an unrolled body stands ``u`` vectors ahead);
everything else stays a scalar and is spread over the lanes where they meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twofold.backends.cpu.emit.functions import ROWS
from twofold.backends.cpu.emit.special import SPECIAL
from twofold.backends.cpu.llvm import Function, Value, const, vector
from twofold.backends.cpu.llvm.types import convert, from_memory, memory_type, number, register_type, rounded, to_memory
from twofold.backends.cpu.loops import Affine, Buffer, Expr, Store, Var
from twofold.backends.cpu.loops.expr import affines, computed
from twofold.backends.cpu.loops.index import Div, Dyn, Mod
from twofold.base.dtypes import bool_
from twofold.base.errors import GraphError


class Body:
    """Emits the expressions of one nest into ``f``. ``pointers`` gives each buffer's base."""

    def __init__(self, f: Function, pointers: dict[Buffer, Value], written: set[Buffer], lanes: int, errors: Value | None):
        self.f, self.pointers, self.written, self.full_lanes, self.errors = f, pointers, written, lanes, errors
        self.past: frozenset[Buffer] = frozenset()  # buffers to be written past the caches
        self.values: dict[Var, Any] = {}  # loop variables known now: an int or an i64 value (of the first lane)
        self.vector: Var | None = None
        self.lanes = 0
        self.count: int | None = None  # lanes in use, where not all
        self._accumulators: list[list[Value]] = []  # [accumulator][copy]
        self._version = 0
        self.vector_accumulators = False
        self._caches: list[dict[Any, Any]] = [{}]

    @property
    def accumulators(self) -> list[list[Value]]:
        """The present values, ``[accumulator][copy]``; setting them forgets what was computed from the old ones."""
        return self._accumulators

    @accumulators.setter
    def accumulators(self, values: list[list[Value]]) -> None:
        self._accumulators = values
        self._version += 1

    # ---- blocks ---------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """What is computed inside is not known after."""
        self._caches.append({})
        before = dict(self.values)
        yield
        self.values = before
        self._caches.pop()

    @contextlib.contextmanager
    def vectorised(self, variable: Var | None, count: int | None) -> Iterator[None]:
        """Inside, ``variable`` runs over lanes, of which ``count`` are in use (None: all)."""
        before = self.vector, self.lanes, self.count
        self.vector, self.lanes, self.count = variable, self.full_lanes if variable else 0, count
        yield
        self.vector, self.lanes, self.count = before

    def _known(self, key: Any) -> Any:
        for cache in self._caches:
            if key in cache:
                return cache[key]
        return None

    def _keep(self, key: Any, value: Any) -> Any:
        self._caches[-1][key] = value
        return value

    # ---- indices --------------------------------------------------------------------------------------------------
    def index(self, a: Affine, copy: int = 0) -> Any:
        """A scalar index (of the first lane): an int or an i64 value."""
        key = (a, copy if self._varies(a.vars) else 0, "index")
        known = self._known(key)
        if known is None:
            total: Any = 0
            for atom, c in self._in_order(a):
                total = self.f.add(total, self.f.mul(self._atom(atom, copy), c))
            known = self._keep(key, self.f.add(total, a.const))
        return known

    def _in_order(self, a: Affine) -> list[tuple[Any, int]]:
        """Terms by the loop in which they are known, outermost first, so that partial sums are shared."""
        place = {v: i for i, v in enumerate(self.values)}
        return sorted(a.terms.items(), key=lambda t: max((place.get(v, 99) for v in t[0].vars), default=-1))

    def _atom(self, atom: Any, copy: int) -> Any:
        f = self.f
        if isinstance(atom, Var):
            base = self.values[atom]
            return f.add(base, copy * self.full_lanes) if atom is self.vector else base
        if isinstance(atom, Dyn):
            x = self.emit(atom.expr, copy)
            return x if x.type == "i64" else f.cast("sext" if atom.expr.dtype.kind == "i" else "zext", x, "i64")
        inner, lift = self._not_negative(atom)
        x = self.index(inner, copy)
        return f.sub(f.div(x, atom.divisor), lift) if isinstance(atom, Div) else f.rem(x, atom.divisor)

    @staticmethod
    def _not_negative(atom: Div | Mod) -> tuple[Affine, int]:
        """The numerator raised by a multiple of the divisor so that it cannot be negative, and that multiple."""
        low = atom.inner.range[0]
        lift = -(low // atom.divisor) if low < 0 else 0
        return atom.inner + lift * atom.divisor, lift

    def lanes_of(self, a: Affine, copy: int = 0) -> Value:
        """An index as a vector of i64, one for each lane."""
        key = (a, copy, "lanes")
        known = self._known(key)
        if known is None:
            f, kind = self.f, vector("i64", self.lanes)
            assert self.vector is not None
            fixed = Affine({t: c for t, c in a.terms.items() if self.vector not in t.vars}, a.const)
            total = f.splat(f.index(self.index(fixed)), self.lanes) if fixed.terms else const(kind, fixed.const)
            for atom, c in a.terms.items():
                if self.vector in atom.vars:
                    total = f.binary("add", total, f.binary("mul", self._atom_lanes(atom, copy), const(kind, c)))
            known = self._keep(key, total)
        return known

    def _atom_lanes(self, atom: Any, copy: int) -> Value:
        f, kind = self.f, vector("i64", self.lanes)
        if isinstance(atom, Var):
            steps = Value(kind, f"<{', '.join(f'i64 {i}' for i in range(self.lanes))}>")
            return f.binary("add", f.splat(f.index(self._atom(atom, copy)), self.lanes), steps)
        if isinstance(atom, Dyn):
            x = self.spread(self.emit(atom.expr, copy))
            return x if x.element == "i64" else f.cast("sext" if atom.expr.dtype.kind == "i" else "zext", x, "i64")
        inner, lift = self._not_negative(atom)
        x = self.lanes_of(inner, copy)
        if inner.range[1] < 2**31:  # narrower division is several times faster
            x = f.cast("trunc", x, "i32")
        x = f.binary("udiv" if isinstance(atom, Div) else "urem", x, atom.divisor)
        x = x if x.element == "i64" else f.cast("zext", x, "i64")
        return f.binary("sub", x, lift) if lift and isinstance(atom, Div) else x

    def _varies(self, variables: frozenset[Any]) -> bool:
        """Whether a value depends on the lane."""
        if self.vector is not None and self.vector in variables:
            return True
        return self.vector_accumulators and any(isinstance(v, str) for v in variables)

    # ---- expressions ----------------------------------------------------------------------------------------------
    def emit(self, e: Expr, copy: int = 0) -> Value:
        """The value of an expression: a vector if it depends on the lane."""
        version = self._version if any(isinstance(v, str) for v in e.vars) else 0
        key = (e, copy if self._varies(e.vars) else 0, version)
        known = self._known(key)
        if known is None:
            known = self._keep(key, getattr(self, f"_{e.kind}")(e, copy))
        return known

    def know(self, e: Expr, value: Value) -> None:
        """Take ``value`` for an expression of no accumulators until the block closes."""
        self._keep((e, 0, 0), value)

    def spread(self, x: Value) -> Value:
        """``x`` in every lane, if there are lanes."""
        if x.lanes or not self.lanes:
            return x
        key = (x, "spread")
        return self._known(key) or self._keep(key, self.f.splat(x, self.lanes))

    def _const(self, e: Expr, copy: int) -> Value:
        return number(e.dtype, e.extra)

    def _acc(self, e: Expr, copy: int) -> Value:
        copies = self.accumulators[e.extra]
        return copies[copy if len(copies) > 1 else 0]

    def _index(self, e: Expr, copy: int) -> Value:
        from twofold.base.dtypes import int64

        x = self.lanes_of(e.extra, copy) if self._varies(e.vars) else self.f.index(self.index(e.extra, copy))
        return convert(self.f, x, int64, e.dtype)

    def _range(self, e: Expr, copy: int) -> Value:
        a, low, high = e.extra
        f = self.f
        x = self.lanes_of(a, copy) if self._varies(e.vars) else f.index(self.index(a, copy))
        return f.icmp("ult", f.binary("sub", x, low) if low else x, high - low)

    def _op(self, e: Expr, copy: int) -> Value:
        args = [self.emit(a, copy) for a in e.args]
        if self._varies(e.vars):
            args = [self.spread(a) for a in args]
        if e.extra in SPECIAL or e.extra.startswith("checked:"):
            name, *rest = e.extra.split(":")
            return SPECIAL[name](self, e, args, *map(int, rest))
        if e.extra == "cast":
            return convert(self.f, args[0], e.args[0].dtype, e.dtype)
        operand = e.args[-1].dtype
        out = ROWS[e.extra](self.f, operand, *args)
        return out if e.dtype is bool_ or e.extra == "where" else rounded(self.f, out, e.dtype)

    # ---- memory ---------------------------------------------------------------------------------------------------
    def pointer(self, buffer: Buffer, a: Affine, copy: int = 0) -> Value:
        """The address of an element (of the first lane); partial sums are shared between loops."""
        f, kind = self.f, memory_type(buffer.dtype)
        place, varies = self.pointers[buffer], False
        moved: tuple[tuple[Any, int], ...] = ()
        for atom, c in self._in_order(a):
            moved = (*moved, (atom, c))
            varies = varies or self._varies(atom.vars)
            key = (buffer, moved, copy if varies else 0)
            known = self._known(key)
            place = known or self._keep(key, f.gep(place, f.mul(self._atom(atom, copy), c), kind))
        return f.gep(place, a.const, kind)

    def _load(self, e: Expr, copy: int) -> Value:
        buffer, a = e.extra
        guard = e.args[0] if e.args else None
        if not self._varies(e.vars):
            return self._load_scalar(buffer, a, guard, copy)
        if self.vector not in a.vars:  # only the guard depends on the lane
            usable = self.emit(guard, copy) if guard is not None else None
            return self._load_once(buffer, a, usable, copy)
        return self._load_lanes(buffer, a, guard, copy)

    def _load_scalar(self, buffer: Buffer, a: Affine, guard: Expr | None, copy: int) -> Value:
        f, kind = self.f, memory_type(buffer.dtype)
        if guard is None:
            return from_memory(f, f.load(kind, self.pointer(buffer, a, copy)), buffer.dtype)
        condition = self.emit(guard, copy)
        place = f.select(condition, f.index(self.index(a, copy)), const("i64", 0))
        raw = f.load(kind, f.gep(self.pointers[buffer], place, kind))
        return from_memory(f, f.select(condition, raw, const(kind, 0)), buffer.dtype)

    def _load_once(self, buffer: Buffer, a: Affine, usable: Value | None, copy: int) -> Value:
        """One element for all lanes, zero where a lane may not read it."""
        f, kind = self.f, memory_type(buffer.dtype)
        assert usable is not None, "only a guard makes such a load depend on the lane"
        some = f.reduce(lambda x, y: f.binary("or", x, y), usable)
        place = f.select(some, f.index(self.index(a, copy)), const("i64", 0))
        raw = self.spread(f.load(kind, f.gep(self.pointers[buffer], place, kind)))
        return from_memory(f, f.select(usable, raw, const(raw.type, 0)), buffer.dtype)

    def _load_lanes(self, buffer: Buffer, a: Affine, guard: Expr | None, copy: int) -> Value:
        f, kind = self.f, memory_type(buffer.dtype)
        full = vector(kind, self.lanes)
        mask = self._mask(self.spread(self.emit(guard, copy)) if guard is not None else None)
        assert self.vector is not None
        if a.coefficient(self.vector) == 1 and not a.hides(self.vector):
            place = self.pointer(buffer, a, copy)
            if mask is None:
                return from_memory(f, f.load(full, place), buffer.dtype)
            name = f"llvm.masked.load.v{self.lanes}{_suffix(kind)}.p0"
            f.module.declare(name, full, ["ptr", vector("i1", self.lanes), full])
            place_text = f"ptr align {max(1, buffer.dtype.itemsize)} {place.name}"
            raw = f.value(full, f"call {full} @{name}({place_text}, {mask}, {const(full, 0)})")
        else:
            raw = self._gather(buffer, a, mask, copy)
        return from_memory(f, raw, buffer.dtype)

    def _gather(self, buffer: Buffer, a: Affine, mask: Value | None, copy: int) -> Value:
        f, kind = self.f, memory_type(buffer.dtype)
        full = vector(kind, self.lanes)
        assert self.vector is not None
        if a.hides(self.vector):
            base, offsets = self.pointers[buffer], self.lanes_of(a, copy)
        else:
            c = a.coefficient(self.vector)
            base = self.pointer(buffer, a, copy)
            offsets = Value(vector("i64", self.lanes), f"<{', '.join(f'i64 {i * c}' for i in range(self.lanes))}>")
        places = f.value(vector("ptr", self.lanes), f"getelementptr {kind}, {base}, {offsets}")
        mask = mask or const(vector("i1", self.lanes), True)
        name = f"llvm.masked.gather.v{self.lanes}{_suffix(kind)}.v{self.lanes}p0"
        f.module.declare(name, full, [places.type, mask.type, full])
        text = f"{places.type} align {max(1, buffer.dtype.itemsize)} {places.name}"
        return f.value(full, f"call {full} @{name}({text}, {mask}, {const(full, 0)})")

    def masked(self, condition: Value) -> Value:
        """A condition that is false in the lanes not in use."""
        return condition if self.count is None else self._mask(condition)  # type: ignore[return-value]

    def _mask(self, guard: Value | None) -> Value | None:
        """Lanes in use, and where the guard holds."""
        if self.count is None:
            return guard
        used = ", ".join(f"i1 {'true' if i < self.count else 'false'}" for i in range(self.lanes))
        mask = Value(vector("i1", self.lanes), f"<{used}>")
        return mask if guard is None else self.f.binary("and", guard, mask)

    def store_all(self, stores: Sequence[Store], copy: int = 0) -> None:
        """Carry out the stores of one element. All values are there before the first is stored, for it may lie over what
        others are made of."""
        values = [self.emit(s.value, copy) for s in stores]
        for s, value in zip(stores, values):
            self._store(s, value, copy)

    def _store(self, s: Store, x: Value, copy: int) -> None:
        f = self.f
        if self.vector is not None and self.vector in s.address.vars:
            if s.address.coefficient(self.vector) != 1 or s.address.hides(self.vector):
                raise self._no_place(s, "whose lanes do not lie side by side")
            self._store_lanes(s, to_memory(f, self.spread(x), s.buffer.dtype), copy)
            return
        if x.lanes or (s.guard is not None and self._varies(s.guard.vars)):
            raise self._no_place(s, "that is the same for all lanes")
        raw = to_memory(f, x, s.buffer.dtype)
        if s.guard is None:
            f.store(raw, self.pointer(s.buffer, s.address, copy))
            return
        condition = self.emit(s.guard, copy)
        with self.block(), f.when(condition):
            f.store(raw, self.pointer(s.buffer, s.address, copy))

    def _no_place(self, s: Store, why: str) -> GraphError:
        """A whole vector would go to one element, and over those behind it."""
        return GraphError(f"the CPU backend stores a vector in {s.buffer} at {s.address}, {why}; please report it")

    def _store_lanes(self, s: Store, raw: Value, copy: int) -> None:
        f = self.f
        mask = self._mask(self.spread(self.emit(s.guard, copy)) if s.guard is not None else None)
        place = self.pointer(s.buffer, s.address, copy)
        if mask is None and s.buffer in self.past and self._in_lines(s.address):
            self._store_line(raw, place)
            return
        if mask is None:
            f.store(raw, place)
            return
        if s.guard is None and self.count == 1:  # LLVM for AVX-512 stores four bytes where a masked lane has two
            f.vstore(raw, place, 1)
            return
        name = f"llvm.masked.store.v{self.lanes}{_suffix(raw.element)}.p0"
        f.module.declare(name, "void", [raw.type, "ptr", mask.type])
        f.emit(f"call void @{name}({raw}, ptr align {max(1, s.buffer.dtype.itemsize)} {place.name}, {mask})")

    def _in_lines(self, a: Affine) -> bool:
        """Whether vectors stored there are whole lines of the cache, if the buffer begins with one."""
        assert self.vector is not None
        rest = [c for atom, c in a.terms.items() if atom is not self.vector]
        return a.coefficient(self.vector) == 1 and all(c % self.lanes == 0 for c in (a.const, *rest))

    def _store_line(self, raw: Value, place: Value) -> None:
        """A line past the caches, where lines begin there."""
        f = self.f

        def store(write: Callable[[Value, Value], None]) -> list[Value]:
            write(raw, place)
            return []

        f.choose(f.is_aligned(place, 4 * self.lanes), lambda: store(f.stream), lambda: store(f.store))

    # ---- moving work out of loops ---------------------------------------------------------------------------------
    def hoist(self, roots: list[Expr], copy: int = 0) -> None:
        """Compute now what the loops still to be opened will not change."""
        seen: set[Expr] = set()
        for root in roots:
            self._hoist(root, seen, copy)

    def _hoist(self, e: Expr, seen: set[Expr], copy: int) -> None:
        if e in seen or e.kind == "const":
            return
        seen.add(e)
        if e.vars <= self.values.keys() and not self._touches_written(e):
            self.emit(e, copy)
            return
        for a in e.args:
            self._hoist(a, seen, copy)
        for affine in affines(e):
            for inner in computed(affine):
                self._hoist(inner, seen, copy)

    def _touches_written(self, e: Expr) -> bool:
        from twofold.backends.cpu.loops.expr import loads

        return any(l.extra[0] in self.written for l in loads(e))


def _suffix(kind: str) -> str:
    return {"float": "f32", "double": "f64", "half": "f16"}.get(kind, kind)


__all__ = ["Body", "register_type"]
