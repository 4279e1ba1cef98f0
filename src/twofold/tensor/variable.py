"""``Variable``: a tensor that can be assigned, eagerly or as the state of a program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from twofold import ops
from twofold.backends import Device, Layout, device
from twofold.base.dtypes import DType
from twofold.base.errors import GradientError, ShapeError, TraceError
from twofold.base.shapes import Shape, show
from twofold.ir import Spec, Value, current_builder
from twofold.ir.assumed import changed
from twofold.ir.builder import note_assignment, noting_assignments
from twofold.tensor.eager import Array, LaidOut
from twofold.tensor.tensor import Tensor, concrete, fresh_leaf, unwrap


class Variable(Tensor):
    """A tensor that programs read and ``assign``: a parameter, a statistic, a moment, a learning rate, a random key.

    In a graph being built, reading gives the symbolic value and assigning makes a state output; the compiled program
    then updates the variable in place.
    """

    __slots__ = ("name",)

    def __init__(
        self, data: Any, dtype: Any = None, *, requires_grad: bool = False, name: str = "", device: Any = None
    ):
        value = unwrap(data) if isinstance(data, Tensor) else concrete(data, dtype, device)
        if not isinstance(value, Array):
            raise TraceError(
                f"variable {name!r}: made from a symbolic value; make variables outside the compiled function"
            )
        super().__init__(value)
        self.name = name
        self._own = fresh_leaf(value, self)
        self._own.requires_grad = requires_grad

    @property
    def value(self) -> Value:
        builder = current_builder()
        return self._own if builder is None else builder.read(self)

    @property
    def requires_grad(self) -> bool:
        return self._own.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if wanted and not self._own.dtype.is_floating:
            raise GradientError(f"only floating tensors can require gradients; {self.name!r} is {self._own.dtype.name}")
        if wanted != self._own.requires_grad:
            changed()
        self._own = fresh_leaf(self._own, self)
        self._own.requires_grad = wanted

    def requires_grad_(self, wanted: bool = True) -> Variable:
        self.requires_grad = wanted
        return self

    @property
    def shape(self) -> Shape:
        return self._own.spec.shape

    @property
    def dtype(self) -> DType:
        return self._own.spec.dtype

    @property
    def device(self) -> Device:
        return self._own.device  # type: ignore[attr-defined]

    def assign(self, new: Any) -> Tensor:
        """Give the variable a new value of the same shape; it is cast to the variable's dtype and moved to its device.

        No gradient flows through an assignment. Returns the new value; in a ``tw.Graph`` the assignment takes effect
        when that tensor (or ``g.updates``) is fetched.
        """
        value = unwrap(new) if isinstance(new, Tensor) else ops.value(new, (self.value,))
        if value.shape != self.shape:
            raise ShapeError(
                f"assign to {self.name or 'variable'}: got shape {show(value.shape)}, expected {show(self.shape)}"
            )
        value = ops.cast(value, self.dtype)
        note_assignment(self)
        builder = current_builder((value,))
        if builder is not None:
            builder.write(self, value)
        else:
            here = value.device == self.device  # type: ignore[attr-defined]
            self.set_array(value if here else Tensor(value)._moved(self.device).value)
        return Tensor(self.value)

    def put_back(self, value: Value) -> None:
        """Have an earlier concrete value again, the very same leaf (what a recomputation needs)."""
        self._own = value

    def set_array(self, value: Any) -> None:
        """Take over a concrete value as it is, on its device."""
        self.set_buffer(value.buffer, value.device, value.spec)

    def set_buffer(
        self, buffer: Any, device: Device, spec: Spec | None = None, *, layout: Layout | None = None
    ) -> None:
        """Have the numbers in a buffer on ``device`` (what a compiled program does after a step); ``spec`` if it is not the
        old one, ``layout`` if they lie in the program's own order. Every change of a variable's numbers gives it a new
        leaf."""
        if spec is not None and spec != self._own.spec:
            changed()
        spec = spec or self._own.spec
        leaf = Array(spec, buffer, device) if layout is None else LaidOut(spec, buffer, device, layout)
        leaf.owner, leaf.requires_grad = self, self._own.requires_grad
        self._own = leaf

    def move_(self, name: Any) -> None:
        """Keep the variable on another device from now on."""
        target = device(name)
        flag = self._own.requires_grad
        moved = Array(self._own.spec, target.backend.put(self.numpy(), target), target)
        self._own = fresh_leaf(moved, self)
        self._own.requires_grad = flag

    def numpy(self) -> np.ndarray:
        """The numbers kept outside any graph being built."""
        view = self._own.numpy().view()  # type: ignore[attr-defined]
        view.setflags(write=False)
        return view

    def __repr__(self) -> str:
        return f"Variable({self.name + ', ' if self.name else ''}{Tensor.__repr__(Tensor(self._own))})"


@contextlib.contextmanager
def assignments_undone() -> Iterator[None]:
    """What variables are assigned in the block, outside graphs, they have for the block only."""
    with noting_assignments() as noted:
        try:
            yield
        finally:
            for variable, before in noted.values():
                variable.put_back(before)
