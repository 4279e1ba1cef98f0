"""Random graphs of integers, bools and floats together, with control flow among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from graph_fuzz import Maker

from twofold.base.dtypes import as_dtype, bool_
from twofold.ir import Spec, Value
from twofold.ops import arrange, control, elementwise, gather, movement, reduction, sorting
from twofold.ops.convert import cast

KINDS = ("int8", "uint8", "int16", "int32", "int64", "bool", "float32")
WHOLE = ("add", "subtract", "multiply", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor")
COMPARE = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
LOGIC = ("logical_and", "logical_or", "logical_xor")


class NumberMaker(Maker):
    """Values of many dtypes; what an op cannot take is cast first."""

    def start(self) -> None:
        for i in range(int(self.rng.integers(2, 5))):
            dtype = as_dtype(str(self.rng.choice(KINDS)))
            self.values.append(self.builder.input(Spec(self.shape(int(self.rng.integers(0, 4))), dtype), f"x{i}"))

    def steps(self) -> list[Any]:
        return [
            self.arithmetic, self.arithmetic, self.divide, self.compare, self.logic, self.shift, self.convert, self.choose,
            self.total, self.total, self.place, self.move, self.move, self.concat, self.order, self.branch, self.loop,
            self.pick_rows,
        ]  # fmt: skip

    def of(self, kinds: str) -> Value:
        """A value of one of the kinds ("iu", "b", "f"), cast to one if need be."""
        v = self.pick()
        wanted = {"b": "bool", "f": "float32"}.get(kinds) or str(self.rng.choice([k for k in KINDS if k[0] in kinds]))
        return v if v.dtype.kind in kinds else self.cast(v, wanted)

    def cast(self, v: Value, dtype: str) -> Value:
        """Cast; floats are brought into a range that every integer has."""
        return cast(elementwise.clip(v, 0.0, 100.0) if v.dtype.is_floating and dtype != "bool" else v, dtype)

    def other(self, v: Value) -> Value:
        """Something of the shape and dtype of ``v``."""
        found = [w for w in self.values if w.shape == v.shape]
        return self.cast(found[int(self.rng.integers(len(found)))], v.dtype.name) if found else v

    # ---- steps ----------------------------------------------------------------------------------------------------
    def arithmetic(self) -> Value:
        v = self.of("iu")
        return getattr(elementwise, str(self.rng.choice(WHOLE)))(v, self.other(v))

    def divide(self) -> Value:
        v = self.of("iu")
        by = elementwise.bitwise_or(self.other(v), cast(self.builder.constant(np.array(1)), v.dtype))  # never 0
        return (elementwise.floor_divide if self.rng.random() < 0.5 else elementwise.remainder)(v, by)

    def compare(self) -> Value:
        v = self.pick()
        names = COMPARE[-2:] if v.dtype is bool_ else COMPARE
        return getattr(elementwise, str(self.rng.choice(names)))(v, self.other(v))

    def logic(self) -> Value:
        v = self.of("b")
        return getattr(elementwise, str(self.rng.choice(LOGIC)))(v, self.other(v))

    def shift(self) -> Value:
        v = self.of("iu")
        by = self.builder.constant(np.asarray(self.rng.integers(0, 7), v.dtype.numpy))
        return (elementwise.bitwise_left_shift if self.rng.random() < 0.5 else elementwise.bitwise_right_shift)(v, by)

    def convert(self) -> Value:
        return self.cast(self.pick(), str(self.rng.choice(KINDS)))

    def choose(self) -> Value:
        v = self.pick()
        return elementwise.where(cast(self.other(v), bool_), v, self.other(v))

    def total(self) -> Value:
        v = self.pick()
        if not v.ndim:
            return v
        axes = tuple(i for i in range(v.ndim) if self.rng.random() < 0.5) or (0,)
        names = ["any", "all"] if v.dtype is bool_ else ["sum", "max", "min"]
        return getattr(reduction, str(self.rng.choice(names)))(v, axis=axes, keepdims=bool(self.rng.random() < 0.5))

    def place(self) -> Value:
        v = self.of("iuf")
        if not v.ndim:
            return v
        axis = int(self.rng.integers(v.ndim))
        if self.rng.random() < 0.3:
            return arrange.cumulative_sum(v, axis=axis)
        return (reduction.argmax if self.rng.random() < 0.5 else reduction.argmin)(v, axis=axis)

    def order(self) -> Value:
        v = self.of("iuf")
        if not v.ndim:
            return v
        axis = int(self.rng.integers(v.ndim))
        return (sorting.sort if self.rng.random() < 0.5 else sorting.argsort)(v, axis=axis)

    def concat(self) -> Value:
        v = self.pick()
        return movement.concat([v, self.other(v), v], int(self.rng.integers(v.ndim))) if v.ndim else v

    def pick_rows(self) -> Value:
        """Rows chosen by indices that the graph computes."""
        v, indices = self.pick(), self.of("iu")
        if not v.ndim or indices.ndim > 2:
            return v
        size = self.builder.constant(np.array(int(v.shape[0])))
        return gather.take(v, elementwise.remainder(cast(indices, "int64"), size), axis=0)

    def branch(self) -> Value:
        v = self.of("iuf")
        w = self.other(v)
        asked = reduction.any(elementwise.greater(v, w))
        return control.cond(asked, lambda a, b: a + b, lambda a, b: elementwise.maximum(a, b) * a, v, w)

    def loop(self) -> Value:
        v = self.of("iuf")
        if not v.ndim:
            return control.while_loop(lambda s: elementwise.less(s[0], 3), lambda s: (s[0] + 1, s[1] + v), (0, v))[1]
        first = movement.squeeze(movement.slice_along(v, 0, 0, 1), 0)
        carry, rows = control.scan(lambda c, row: (elementwise.maximum(c, row), c - row), first, v)
        return rows + carry
