"""Python's operators on values, as a mixin. What they call is filled in by ``twofold.ops``, one layer up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}

_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
_COMPARE = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip
_UNARY = {"neg": "negative", "abs": "abs", "invert": "bitwise_invert", "pos": "positive"}


class ArrayOperators:
    """``x + y``, ``x @ y``, ``x[i]`` and the rest, each a call of the function of the same standard name.

    ``==`` stays identity here: values are keys of dictionaries. The user's ``Tensor`` compares elementwise.
    """

    __slots__ = ()
    __array_priority__ = 1000  # NumPy arrays on the left give way
    __array_ufunc__ = None

    if TYPE_CHECKING:  # set below from the tables, where a type checker does not look
        __add__: Any
        __radd__: Any
        __sub__: Any
        __rsub__: Any
        __mul__: Any
        __rmul__: Any
        __truediv__: Any
        __rtruediv__: Any
        __floordiv__: Any
        __mod__: Any
        __pow__: Any
        __rpow__: Any
        __matmul__: Any
        __and__: Any
        __or__: Any
        __xor__: Any
        __lt__: Any
        __le__: Any
        __gt__: Any
        __ge__: Any
        __neg__: Any
        __abs__: Any
        __invert__: Any

    def __getitem__(self, index: Any) -> Any:
        return IMPLEMENTATIONS["getitem"](self, index)


def _binary(name: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: IMPLEMENTATIONS[name](self, other)


def _reflected(name: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: IMPLEMENTATIONS[name](other, self)


def _unary(name: str) -> Callable[[Any], Any]:
    return lambda self: IMPLEMENTATIONS[name](self)


SLOTS = ["__getitem__"]
for _slot, _name in _BINARY.items():
    setattr(ArrayOperators, f"__{_slot}__", _binary(_name))
    setattr(ArrayOperators, f"__r{_slot}__", _reflected(_name))
    SLOTS += [f"__{_slot}__", f"__r{_slot}__"]
for _slot, _name in _COMPARE.items():
    setattr(ArrayOperators, f"__{_slot}__", _binary(_name))
    SLOTS.append(f"__{_slot}__")
for _slot, _name in _UNARY.items():
    setattr(ArrayOperators, f"__{_slot}__", _unary(_name))
    SLOTS.append(f"__{_slot}__")
