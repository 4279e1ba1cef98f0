"""Index arithmetic: sums of integer multiples of atoms, simplified as they are made.

    Affine = const + sum of coefficient * atom
    atom   = Var (a loop variable in [0, extent)) | Div(affine, d) | Mod(affine, d) | Dyn (a computed integer)

Every movement op is a map of indices; composing maps and simplifying with the ranges of the variables is what makes a
reshape or a transpose cost nothing when it is read through. ``d * (a // d) + a % d`` folds back to ``a``.
"""

from __future__ import annotations

import itertools
from typing import Any

_numbers = itertools.count()


class Var:
    """A loop variable; ``extent`` values from 0. Equal by identity."""

    __slots__ = ("extent", "name", "number")

    def __init__(self, extent: int, name: str = "i"):
        self.extent, self.name, self.number = extent, name, next(_numbers)

    @property
    def range(self) -> tuple[int, int]:
        return 0, max(0, self.extent - 1)

    @property
    def vars(self) -> frozenset[Any]:
        return frozenset((self,))

    def __repr__(self) -> str:
        return f"{self.name}{self.number}"


class _Quotient:
    """Shared by Div and Mod: compared by content."""

    __slots__ = ("_hash", "divisor", "inner", "vars")
    sign = "//"

    def __init__(self, inner: Affine, divisor: int):
        self.inner, self.divisor, self.vars = inner, divisor, inner.vars
        self._hash = hash((type(self), inner, divisor))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.divisor == other.divisor and self.inner == other.inner

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"({self.inner}{self.sign}{self.divisor})"


class Div(_Quotient):
    """floor(inner / divisor)."""

    __slots__ = ()

    @property
    def range(self) -> tuple[int, int]:
        low, high = self.inner.range
        return low // self.divisor, high // self.divisor


class Mod(_Quotient):
    """inner modulo divisor, never negative."""

    __slots__ = ()
    sign = "%"

    @property
    def range(self) -> tuple[int, int]:
        return 0, self.divisor - 1


class Dyn:
    """An integer computed by an expression (an index read from memory), promised to lie in [0, size)."""

    __slots__ = ("expr", "size")

    def __init__(self, expr: Any, size: int):
        self.expr, self.size = expr, size

    @property
    def range(self) -> tuple[int, int]:
        return 0, max(0, self.size - 1)

    @property
    def vars(self) -> frozenset[Any]:
        return self.expr.vars

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dyn) and self.expr is other.expr and self.size == other.size

    def __hash__(self) -> int:
        return hash((id(self.expr), self.size))

    def __repr__(self) -> str:
        return f"[{self.expr!r}]"


class Affine:
    """``const + sum(coefficient * atom)``; immutable, compared by content."""

    __slots__ = ("_hash", "_range", "const", "terms", "vars")

    def __init__(self, terms: dict[Any, int], const: int = 0):
        self.terms = {atom: c for atom, c in terms.items() if c}
        self.const = const
        self.vars: frozenset[Any] = frozenset().union(*(a.vars for a in self.terms)) if self.terms else frozenset()
        self._hash = hash((frozenset(self.terms.items()), const))
        self._range: tuple[int, int] | None = None

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.const + other) if other else self
        if not other.terms:
            return self + other.const
        if not self.terms:
            return other + self.const
        terms = dict(self.terms)
        for atom, c in other.terms.items():
            terms[atom] = terms.get(atom, 0) + c
        return Affine(_rejoin(terms), self.const + other.const)._unfold()

    __radd__ = __add__

    def __mul__(self, k: int) -> Affine:
        return self if k == 1 else Affine({a: c * k for a, c in self.terms.items()}, self.const * k)

    __rmul__ = __mul__

    def __sub__(self, other: Affine | int) -> Affine:
        return self + (-other if isinstance(other, int) else other * -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and self.const == other.const and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def _unfold(self) -> Affine:
        """Finish a rejoin: a whole affine stands among the terms as an atom; add it properly."""
        whole = [(a, c) for a, c in self.terms.items() if isinstance(a, Affine)]
        if not whole:
            return self
        total = Affine({a: c for a, c in self.terms.items() if not isinstance(a, Affine)}, self.const)
        for affine, c in whole:
            total = total + affine * c
        return total

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest value it can have."""
        if self._range is None:
            low = high = self.const
            for atom, c in self.terms.items():
                a, b = atom.range
                low, high = low + min(a * c, b * c), high + max(a * c, b * c)
            self._range = (low, high)
        return self._range

    def coefficient(self, variable: Var) -> int:
        """Of the plain variable (what stands inside quotients is not counted; see ``hides``)."""
        return self.terms.get(variable, 0)

    def hides(self, variable: Var) -> bool:
        """Whether the variable stands inside a quotient or a computed index."""
        return any(variable in a.vars for a in self.terms if not isinstance(a, Var))

    def substitute(self, values: dict[Var, Affine]) -> Affine:
        """With variables replaced."""
        if self.vars.isdisjoint(values):
            return self
        total = constant(self.const)
        for atom, c in self.terms.items():
            total = total + _substitute(atom, values) * c
        return total

    def __repr__(self) -> str:
        parts = [f"{c}*{a}" if c != 1 else f"{a}" for a, c in sorted(self.terms.items(), key=lambda t: str(t[0]))]
        if self.const or not parts:
            parts.append(str(self.const))
        return "+".join(parts)


def _substitute(atom: Any, values: dict[Var, Affine]) -> Affine:
    if isinstance(atom, Var):
        return values.get(atom) or var(atom)
    if isinstance(atom, Div):
        return floordiv(atom.inner.substitute(values), atom.divisor)
    if isinstance(atom, Mod):
        return mod(atom.inner.substitute(values), atom.divisor)
    return Affine({Dyn(atom.expr.substitute(values), atom.size): 1})


def _rejoin(terms: dict[Any, int]) -> dict[Any, int]:
    """d * c * (a // d) + c * (a % d) becomes c * a (left as an Affine among the terms for ``_unfold``)."""
    for atom in [a for a in terms if isinstance(a, Mod)]:
        c, quotient = terms[atom], floordiv(atom.inner, atom.divisor)
        if not c or quotient.const or len(quotient.terms) != 1:
            continue
        ((whole, k),) = quotient.terms.items()
        if k == 1 and terms.get(whole) == c * atom.divisor:
            terms = dict(terms)
            del terms[whole], terms[atom]
            terms[atom.inner] = terms.get(atom.inner, 0) + c
    return terms


def constant(value: int) -> Affine:
    """A fixed index."""
    return Affine({}, value)


def var(variable: Var) -> Affine:
    """A loop variable as an index (0 where it has only that value)."""
    return Affine({variable: 1}) if variable.extent != 1 else Affine({})


def dynamic(expr: Any, size: int) -> Affine:
    """A computed index in [0, size)."""
    return Affine({Dyn(expr, size): 1})


def _split(a: Affine, d: int) -> tuple[Affine, Affine]:
    """(outside, rest) with a == d * outside + rest, and as little as possible in rest."""
    outside = Affine({atom: c // d for atom, c in a.terms.items() if c % d == 0}, a.const // d)
    rest = Affine({atom: c for atom, c in a.terms.items() if c % d}, a.const % d)
    return outside, rest


def floordiv(a: Affine, d: int) -> Affine:
    """floor(a / d) for d > 0."""
    if d == 1:
        return a
    outside, rest = _split(a, d)
    low, high = rest.range
    if low // d == high // d:
        return outside + low // d
    if len(rest.terms) == 1 and not rest.const:
        ((atom, c),) = rest.terms.items()
        if c == 1 and isinstance(atom, Div):
            return outside + floordiv(atom.inner, atom.divisor * d)
        if c == 1 and isinstance(atom, Mod) and atom.divisor % d == 0:
            return outside + mod(floordiv(atom.inner, d), atom.divisor // d)
    common = _common(rest, d)
    if common > 1:  # (c*x + r) // (c*d') = x // d' for 0 <= r < c
        reduced = Affine({atom: c // common for atom, c in rest.terms.items()}, rest.const // common)
        return outside + floordiv(reduced, d // common)
    return outside + Affine({Div(rest, d): 1})


def _common(a: Affine, d: int) -> int:
    from math import gcd

    return gcd(d, *a.terms.values()) if a.terms else 1


def mod(a: Affine, d: int) -> Affine:
    """a modulo d, in [0, d), for d > 0."""
    if d == 1:
        return constant(0)
    _, rest = _split(a, d)
    low, high = rest.range
    if low // d == high // d:
        return rest - (low // d) * d
    if len(rest.terms) == 1 and not rest.const:
        ((atom, c),) = rest.terms.items()
        if c == 1 and isinstance(atom, Mod) and atom.divisor % d == 0:
            return mod(atom.inner, d)
    common = _common(rest, d)
    if common > 1 and rest.const % common == 0:
        reduced = Affine({atom: c // common for atom, c in rest.terms.items()}, rest.const // common)
        return mod(reduced, d // common) * common
    return Affine({Mod(rest, d): 1})
