"""Dimensions: an int, or a symbolic size such as ``N``, ``2*N + 1`` or ``(H + 3)//2``.

A ``Sym`` is a polynomial with integer coefficients over atoms; an atom is a name or a floor quotient. Symbols stand for
sizes of at least one. Two dims are equal when their polynomials are; nothing else is ever assumed about them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import TypeAlias, Union

from twofold.base.errors import ShapeError

Dim: TypeAlias = Union[int, "Sym"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Quotient:
    """An atom: floor(numerator / denominator) that could not be simplified."""

    __slots__ = ("denominator", "numerator")

    def __init__(self, numerator: Dim, denominator: Dim):
        self.numerator, self.denominator = numerator, denominator

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Quotient) and (self.numerator, self.denominator) == (other.numerator, other.denominator)

    def __hash__(self) -> int:
        return hash((self.numerator, self.denominator))

    def __str__(self) -> str:
        return f"({self.numerator})//{self.denominator if isinstance(self.denominator, int) else f'({self.denominator})'}"


_Monomial: TypeAlias = tuple["str | _Quotient", ...]


class Sym:
    """A symbolic dimension. Build one with ``symbol("N")``; arithmetic with ints and dims gives dims again."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[_Monomial, int]):
        self.terms = dict(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: (-len(t[0]), str(t[0]))))
        self._hash = hash(frozenset(self.terms.items()))

    def __add__(self, other: Dim) -> Dim:
        out = dict(self.terms)
        for monomial, coefficient in _terms(other).items():
            out[monomial] = out.get(monomial, 0) + coefficient
        return _dim(out)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: Dim) -> Dim:
        return self * -1 + other

    def __mul__(self, other: Dim) -> Dim:
        out: dict[_Monomial, int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in _terms(other).items():
                key = tuple(sorted(m1 + m2, key=str))
                out[key] = out.get(key, 0) + c1 * c2
        return _dim(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return _divide(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return _divide(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - (self // other) * other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sym) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __bool__(self) -> bool:
        return True

    def __index__(self) -> int:
        raise ShapeError(f"dimension {self} is symbolic: its size is known only when the program runs")

    __int__ = __index__

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms.items():
            factors = [str(a) for a in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            parts.append("*".join(factors))
        return "+".join(parts).replace("+-", "-")

    __repr__ = __str__


def symbol(name: str) -> Sym:
    """The symbolic dimension called ``name`` (letters, digits, underscores)."""
    if not _NAME.match(name):
        raise ShapeError(f"symbolic dimension {name!r}: expected a name of letters, digits and underscores")
    return Sym({(name,): 1})


def symbols_in(dim: Dim) -> set[str]:
    """Names that a dim mentions."""
    if isinstance(dim, int):
        return set()
    found: set[str] = set()
    for monomial in dim.terms:
        for atom in monomial:
            if isinstance(atom, str):
                found.add(atom)
            else:
                found |= symbols_in(atom.numerator) | symbols_in(atom.denominator)
    return found


def substitute(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    """``dim`` with symbols replaced by the given sizes; symbols not named stay."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms.items():
        product: Dim = coefficient
        for atom in monomial:
            if isinstance(atom, str):
                product = product * sizes.get(atom, Sym({(atom,): 1}))
            else:
                product = product * _divide(substitute(atom.numerator, sizes), substitute(atom.denominator, sizes))
        total = total + product
    return total


def solve(dim: Dim, size: int) -> dict[str, int] | None:
    """What ``dim == size`` says of its symbol: ``{"N": 3}`` for ``2*N`` and 6; ``{}`` if nothing; None if impossible."""
    if isinstance(dim, int):
        return {} if dim == size else None
    linear = [(m, c) for m, c in dim.terms.items() if m]
    if len(linear) == 1 and len(linear[0][0]) == 1 and isinstance(linear[0][0][0], str):
        rest = size - dim.terms.get((), 0)
        value, remainder = divmod(rest, linear[0][1])
        return {linear[0][0][0]: value} if remainder == 0 and value >= 0 else None
    return {}


def parse_dim(text: str) -> Dim:
    """The dim that ``str`` printed; ShapeError for anything but sums, products and floor quotients of names and ints."""
    try:
        return _from_syntax(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ShapeError(f"dimension {text!r} cannot be read; expected an expression such as 'N' or '2*N+1'") from None


def _from_syntax(node: ast.AST) -> Dim:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _from_syntax(operand) * -1
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _from_syntax(left), _from_syntax(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return a // b
    raise ValueError


def _terms(dim: Dim) -> Mapping[_Monomial, int]:
    return dim.terms if isinstance(dim, Sym) else {(): int(dim)}


def _dim(terms: Mapping[_Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Sym(kept)


def _divide(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    exact = _divide_by_monomial(a, b)
    return exact if exact is not None else Sym({(_Quotient(a, b),): 1})


def _divide_by_monomial(a: Dim, b: Dim) -> Dim | None:
    if a == b:
        return 1
    divisor = _terms(b)
    if len(divisor) != 1:
        return None
    ((factors, scale),) = divisor.items()
    out: dict[_Monomial, int] = {}
    for monomial, coefficient in _terms(a).items():
        rest = list(monomial)
        for factor in factors:
            if factor not in rest:
                return None
            rest.remove(factor)
        if coefficient % scale:
            return None
        out[tuple(rest)] = coefficient // scale
    return _dim(out)
