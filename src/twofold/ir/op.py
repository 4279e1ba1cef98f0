"""The op record: all that twofold knows of a primitive operation, in one place.

    infer(*specs, **attrs)        -> Spec or tuple of Specs; raises ShapeError / DtypeError that teach
    ref(*arrays, **attrs)         -> NumPy array or tuple: the meaning
    vjp(g, y, *xs, **attrs)       -> one cotangent per input (None: no gradient), written with ops
    samples()                     -> Samples: small inputs from which tests are generated

A ``vjp`` row may return a cotangent in the *broadcast* shape or the wide dtype: the engine sums and casts it back to
its input, and may be a function without arguments, called only if that input's gradient is wanted. A parameter of
``vjp`` whose name starts with ``_`` is not read, so eager mode does not keep its buffer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from twofold.base.errors import GraphError
from twofold.ir.values import Spec


@dataclass(frozen=True)
class Sample:
    """Inputs (NumPy arrays, or shape tuples to be filled with random numbers) and attributes for one test of an op.

    ``grad`` False leaves the sample out of gradient checks (a point where the function has a kink).
    """

    inputs: tuple
    attrs: dict = field(default_factory=dict)
    grad: bool = True
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True, eq=False)
class Op:
    """One primitive. See the module's docstring for the contract of each field."""

    name: str
    infer: Callable[..., Any]
    ref: Callable[..., Any]
    vjp: Callable[..., Any] | None = None
    samples: Callable[[], Iterable[Sample]] = tuple
    onnx: str | None = None
    kind: str = "other"
    multi: bool = False  # returns a tuple
    pure: bool = True  # equal inputs give equal outputs, and nothing else happens: may be merged, dropped, folded
    sparse: bool = False  # ``vjp`` of a multi op takes None for a result without a cotangent (else it gets zeros)
    reads: tuple[int, ...] | None = None  # the results that ``vjp`` reads, where it reads only some of them
    arity: int | None = None  # operands, where ``infer`` itself would take any number
    doc: str = ""

    def specs(self, inputs: tuple[Spec, ...], attrs: dict[str, Any]) -> tuple[Spec, ...]:
        """The output specs, always as a tuple; GraphError for a wrong number of operands."""
        least, most = self.operands
        if not least <= len(inputs) <= most:
            wanted = str(least) if least == most else f"{least} to {most}" if most < _MANY else f"at least {least}"
            raise GraphError(f"{self.name}: got {len(inputs)} operands; expected {wanted}")
        out = self.infer(*inputs, **attrs)
        return out if isinstance(out, tuple) else (out,)

    @functools.cached_property
    def operands(self) -> tuple[int, int]:
        """The fewest and the most operands: ``arity``, or what ``infer`` takes by position."""
        if self.arity is not None:
            return self.arity, self.arity
        positional = [p for p in inspect.signature(self.infer).parameters.values() if p.kind in _BY_POSITION]
        single = [p for p in positional if p.kind is not p.VAR_POSITIONAL]
        least = sum(p.default is p.empty for p in single)
        return least, len(single) if len(single) == len(positional) else _MANY

    def saved(self, count: int) -> tuple[bool, tuple[bool, ...]]:
        """Whether ``vjp`` reads the outputs, and each of ``count`` inputs (derived from its parameter names)."""
        if self.vjp is None:
            return False, (False,) * count
        return _saved(self.vjp, count)

    def __repr__(self) -> str:
        return f"<op {self.name}>"


_MANY = 2**31  # operands: no limit
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_SAVED: dict[tuple[Any, int], tuple[bool, tuple[bool, ...]]] = {}


def _saved(vjp: Callable[..., Any], count: int) -> tuple[bool, tuple[bool, ...]]:
    cached = _SAVED.get((vjp, count))
    if cached is None:
        names: list[str] = []
        for p in inspect.signature(vjp).parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                names += [p.name] * (count + 2 - len(names))
            elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                names.append(p.name)
        needed = [not n.startswith("_") for n in names]
        cached = _SAVED[vjp, count] = (needed[1], tuple(needed[2 : 2 + count]))
    return cached


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add a record to the op table; names are unique."""
    if op.name in OPS:
        raise GraphError(f"op {op.name!r} is registered twice")
    OPS[op.name] = op
    return op
