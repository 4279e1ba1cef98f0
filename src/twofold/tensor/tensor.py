"""``Tensor``: what users hold. A handle on a value, eager or symbolic.

Values never change; a handle may be given another value (``x[i] = v``). So a recorded gradient always sees the numbers
that were there when it was recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold import autodiff, ops
from twofold.autodiff.custom import CUSTOM
from twofold.backends import Device, device
from twofold.base.dims import Dim
from twofold.base.dtypes import BY_NAME, DType, as_dtype
from twofold.base.errors import DeviceError, GradientError, ShapeError, TraceError
from twofold.base.shapes import Shape, show
from twofold.ir import Spec, Value, bind, current_builder
from twofold.ir.assumed import changed
from twofold.ir.operators import ArrayOperators
from twofold.tensor.eager import Array, default_device


class Tensor(ArrayOperators):
    """An n-dimensional array that remembers how it was made.

    Create one with ``tw.tensor(data)``. ``shape``, ``dtype`` and ``device`` describe it; arithmetic, indexing and the
    array functions work on it; ``backward()`` leaves gradients in ``.grad`` of the tensors that require them.

    >>> import twofold as tw
    >>> x = tw.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad.numpy().tolist()
    [2.0, 4.0]
    """

    __slots__ = ("__weakref__", "_grad", "_own")
    __hash__ = object.__hash__

    def __init__(self, value: Value):
        self._own = value
        self._grad: Tensor | None = None

    # -- the value behind ----------------------------------------------------------------------------------------------
    @property
    def value(self) -> Value:
        """The present value: in a graph being built, symbolic; else a concrete array."""
        return self._own

    def _array(self, what: str) -> Array:
        value = self.value
        if not isinstance(value, Array):
            raise TraceError(
                f"{what}: this {value.spec} tensor is symbolic: its numbers exist only when the program runs. Use tw.cond, "
                "tw.while_loop or tw.where instead of Python control flow, and return the tensor to read it"
            )
        return value

    # -- what it is ----------------------------------------------------------------------------------------------------
    @property
    def shape(self) -> Shape:
        return self.value.spec.shape

    @property
    def dtype(self) -> DType:
        return self.value.spec.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        return self.value.spec.size

    @property
    def nbytes(self) -> Dim:
        return self.value.spec.nbytes

    @property
    def device(self) -> Device:
        value = self.value
        return value.device if isinstance(value, Array) else default_device()

    @property
    def requires_grad(self) -> bool:
        return self.value.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.requires_grad_(wanted)

    def requires_grad_(self, wanted: bool = True) -> Tensor:
        """Ask for gradients at this tensor (a leaf: not the result of a recorded computation)."""
        value = self._own
        if wanted and not value.dtype.is_floating:
            raise GradientError(f"only floating tensors can require gradients; this one is {value.dtype.name}")
        if value.producer is not None and value.requires_grad and value.owner is None and not wanted:
            raise GradientError("requires_grad can be switched off at leaves only; use x.detach()")
        if value.producer is None or value.owner is not None:
            if wanted != value.requires_grad:
                changed()
            self._own = fresh_leaf(value, self if wanted else None)
        return self

    def assumed(self) -> dict[str, Any]:
        """What traces that read the tensor take for granted."""
        return {"requires_grad": self._own.requires_grad, "its spec": str(self._own.spec)}

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded computation produced it."""
        return self.value.producer is None or self.value.owner is not None

    @property
    def grad(self) -> Tensor | None:
        """The gradient left by ``backward``; None before."""
        builder = current_builder()
        return self._grad if builder is None else builder.read_gradient(self, self._grad)

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        if gradient is not None and gradient.shape != self.shape:
            raise ShapeError(f"grad: shape {show(gradient.shape)} for a tensor of shape {show(self.shape)}")
        builder = current_builder()
        if builder is None:
            self._grad = gradient
        else:
            builder.write_gradient(self, gradient)

    # -- numbers out ---------------------------------------------------------------------------------------------------
    def numpy(self) -> np.ndarray:
        """The numbers as a NumPy array (read-only; shares memory on a CPU)."""
        value = self._own  # a variable has its own way
        view = (value if type(value) is Array else self._array("numpy()")).numpy().view()
        view.setflags(write=False)
        return view

    def item(self) -> bool | int | float:
        """The number in a tensor of one element."""
        array = self._array("item()").numpy()
        if array.size != 1:
            raise ShapeError(f"item(): tensor of shape {show(self.shape)} has {array.size} elements; expected 1")
        return array.item() if array.dtype.kind in "biuf" else float(array.reshape(()))

    def tolist(self) -> Any:
        """The numbers as nested Python lists."""
        return self._array("tolist()").numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._array("conversion to NumPy").numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"converting {array.dtype} to {dtype} needs a copy")
            return array.astype(dtype)
        return array.copy() if copy is not False else self.numpy()

    def _scalar(self, kind: type) -> Any:
        array = self._array(f"{kind.__name__}()").numpy()
        if array.size != 1:
            raise ShapeError(
                f"{kind.__name__}() of a tensor of shape {show(self.shape)}; expected one element; use .any() or .all()"
            )
        return kind(array.reshape(())[()])

    def __format__(self, form: str) -> str:
        """``f"{loss:.3f}"`` for a single number; without a form as ``str``."""
        return format(self.item(), form) if form else str(self)

    def __reduce__(self) -> Any:
        """Copies and pickles hold the numbers, the device, and whether gradients are wanted; no record and no gradient."""
        array = self._array("copying")
        numbers = array.numpy().copy()
        return _again, (type(self), numbers, str(array.device), array.requires_grad, getattr(self, "name", None))

    def __bool__(self) -> bool:
        return self._scalar(bool)

    def __int__(self) -> int:
        return self._scalar(int)

    def __float__(self) -> float:
        return self._scalar(float)

    def __complex__(self) -> complex:
        return complex(self._scalar(float))

    def __index__(self) -> int:
        if self.dtype.kind not in "iub" or self.ndim:
            raise TypeError(f"only a 0-d integer tensor is an index; this one is {self.value.spec}")
        return self._scalar(int)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return int(self.shape[0])

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __contains__(self, item: Any) -> bool:
        return bool(np.any(self.numpy() == np.asarray(item)))

    def __repr__(self) -> str:
        value = self.value
        if not isinstance(value, Array):
            return f"tensor(<symbolic {value.name or ''}>, {value.spec})"
        text = np.array2string(value.numpy(), separator=", ", prefix="tensor(", precision=4, threshold=200)
        extras = [] if self.dtype.name in ("float32", "int64", "bool") else [f"dtype={self.dtype.name}"]
        extras += [f"device='{value.device}'"] if str(value.device) != "cpu" else []
        extras += ["requires_grad=True"] if value.requires_grad else []
        return f"tensor({', '.join([text, *extras])})"

    # -- gradients -----------------------------------------------------------------------------------------------------
    def backward(self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to ``.grad`` of every leaf that requires gradients.

        ``self`` must have one element unless ``gradient`` (its shape) is given. The recorded graph is freed unless
        ``retain_graph``; with ``create_graph`` the gradients can be differentiated again.
        """
        value = self.value
        if not value.requires_grad:
            raise GradientError("backward(): this tensor does not depend on any tensor that requires gradients")
        if gradient is None and value.size != 1:
            raise GradientError(
                f"backward() of a tensor of shape {show(self.shape)} needs a gradient argument of that shape; "
                "reduce it first, for example .sum() or .mean()"
            )
        found = autodiff.leaves([value])
        seed = None if gradient is None else unwrap(asarray(gradient))
        keep = create_graph if retain_graph is None else retain_graph
        builder = current_builder((value,))
        gs = autodiff.gradients(
            [value], found, [seed], retain_graph=keep or builder is not None, create_graph=create_graph
        )
        if builder is not None and not keep:
            builder.spent.update(map(id, autodiff.producers([value])))
        for leaf, g in zip(found, gs):
            target = leaf.owner
            if g is not None and target is not None:
                before = target.grad
                target.grad = wrap(g) if before is None else before + wrap(g)

    def detach(self) -> Tensor:
        """The same numbers as a constant for gradients."""
        value = self.value
        if isinstance(value, Array) and not current_builder():
            return Tensor(Array(value.spec, value.buffer, value.device))
        out = ops.detach(value)
        out.detached = True
        out.requires_grad = False
        return Tensor(out)

    # -- moving --------------------------------------------------------------------------------------------------------
    def to(self, *where: Any, dtype: Any = None, device: Any = None) -> Tensor:
        """This tensor on another device and/or in another dtype: ``x.to("gpu")``, ``x.to(tw.float16)``."""
        for argument in where:
            if isinstance(argument, Tensor):
                dtype, device = argument.dtype, argument.device
            elif isinstance(argument, (Device, str)) and not _names_dtype(argument):
                device = argument
            else:
                dtype = argument
        out = self
        if dtype is not None and as_dtype(dtype) is not self.dtype:
            out = wrap(ops.cast(out.value, dtype))
        return out if device is None else out._moved(device)

    def _moved(self, name: Any) -> Tensor:
        target = device(name)
        value = self.value
        if not isinstance(value, Array):
            raise DeviceError(
                "a symbolic tensor has no device: choose one for the whole program with tw.compile(f, devices=...)"
            )
        if value.device == target:
            return self
        moved, home = value, value.device
        if value.requires_grad:  # its gradient goes the way back

            def back(residuals: Any, ys: Any, gs: Any) -> list[Value | None]:
                return [wrap(gs[0]).to(device=home).value]

            (moved,) = bind(CUSTOM, value, value, args=1, results=1, rule=back)
        out = Array(value.spec, target.backend.put(value.numpy(), target), target, moved.producer, moved.index)
        out.requires_grad = value.requires_grad
        return Tensor(out)

    def to_device(self, device: Any, /, *, stream: Any = None) -> Tensor:
        """The array API standard's spelling of ``to``."""
        if stream is not None:
            raise DeviceError("to_device: streams are not supported; pass stream=None")
        return self.to(device=device)

    def cpu(self) -> Tensor:
        return self.to(device="cpu")

    def cuda(self, index: int = 0) -> Tensor:
        return self.to(device=f"gpu:{index}")


def fresh_leaf(value: Value, owner: Tensor | None) -> Value:
    """A fresh leaf with the same numbers."""
    if isinstance(value, Array):
        out: Value = Array(value.spec, value.buffer, value.device)
    else:
        out = value
    out.owner = owner
    out.requires_grad = owner is not None
    return out


def _again(kind: type, numbers: np.ndarray, where: str, requires_grad: bool, name: str | None) -> Tensor:
    """A tensor or variable from what ``__reduce__`` put down."""
    out: Any = object.__new__(kind)
    Tensor.__init__(out, concrete(numbers, where=where))
    if name is not None:
        out.name = name
        out._own = fresh_leaf(out._own, out)
    elif requires_grad:
        return out.requires_grad_()
    out._own.requires_grad = requires_grad
    return out


def _names_dtype(name: Any) -> bool:
    return isinstance(name, str) and name in BY_NAME


def wrap(result: Any) -> Any:
    """Values (also in tuples and lists) as tensors."""
    if isinstance(result, Value):
        return Tensor(result)
    if isinstance(result, (tuple, list)) and any(isinstance(r, (Value, tuple, list)) for r in result):
        wrapped = [wrap(r) for r in result]
        return type(result)(*wrapped) if hasattr(result, "_fields") else type(result)(wrapped)
    return result


def unwrap(argument: Any) -> Any:
    """Tensors (also in tuples, lists) as values."""
    if isinstance(argument, Tensor):
        return argument.value
    if type(argument) in (tuple, list) and any(isinstance(a, (Tensor, tuple, list)) for a in argument):
        return type(argument)(map(unwrap, argument))
    return argument


def concrete(data: Any, dtype: Any = None, where: Any = None) -> Array:
    """A concrete value of any data, even while a graph is being built."""
    if isinstance(data, Tensor):
        data = data._array("tensor()").numpy()
    array = ops.as_numpy(data, None if dtype is None else as_dtype(dtype))
    if array is data or np.may_share_memory(array, data if isinstance(data, np.ndarray) else np.empty(0)):
        array = array.copy()
    target = default_device() if where is None else device(where)
    return Array(Spec(array.shape, as_dtype(array.dtype)), target.backend.put(array, target), target)


def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of ``data`` (numbers, nested lists, NumPy arrays, tensors).

    Python floats become float32, ints int64; arrays keep their dtype unless ``dtype`` is given.
    """
    if isinstance(data, (list, tuple)) and any(isinstance(d, Tensor) for d in data):
        return wrap(ops.movement.stack([unwrap(asarray(d)) for d in data]))
    if current_builder() is not None:
        value = (
            data.value if isinstance(data, Tensor) else ops.constant(data, None if dtype is None else as_dtype(dtype))
        )
        out = Tensor(ops.identity(value if dtype is None else ops.cast(value, dtype)))
    else:
        out = Tensor(concrete(data, dtype, device))
    return out.requires_grad_() if requires_grad else out


def asarray(data: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """``data`` as a tensor; a tensor of the right dtype and device is returned as it is unless ``copy``."""
    if isinstance(data, Tensor):
        out = data if dtype is None and device is None else data.to(dtype=dtype, device=device)
        if copy is False and out is not data:
            raise ValueError("asarray: copy=False, but the dtype or the device changes")
        return wrap(ops.identity(out.value)) if copy and out is data else out
    if copy is False and not isinstance(data, np.ndarray):
        raise ValueError(f"asarray: copy=False, but a {type(data).__name__} cannot be shared")
    return tensor(data, dtype, device)
