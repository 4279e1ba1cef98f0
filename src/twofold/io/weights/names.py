"""The complete list of globals a weight file may name. Anything else is refused; nothing is ever imported.

Each name maps to one of our own functions that checks its arguments and returns a plain record (see ``refs``).
Source: ``torch/_utils.py``, ``torch/storage.py`` and ``torch/serialization.py`` (how PyTorch writes tensors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twofold.base import dtypes
from twofold.base.errors import FormatError, UnsafeFileError
from twofold.io.weights.refs import Name, StorageRef, TensorRef, natural, naturals

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "bytes",
}
DTYPES = (
    *dtypes.BY_NAME,
    *("complex32", "complex64", "complex128", "qint8", "quint8", "qint32"),  # known, so that the error can say
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),  # "not supported"
)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise FormatError(f"a tensor is built from {type(storage).__name__}; expected a storage")
    shape, strides = naturals(shape, "a tensor's shape"), naturals(strides, "a tensor's strides")
    if len(shape) != len(strides):
        raise FormatError(f"a tensor has shape {shape} but strides {strides}; their lengths differ")
    return TensorRef(storage, dtype or storage.dtype, natural(offset, "a tensor's offset"), shape, strides)


def _tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata=None) -> TensorRef:
    return _tensor(storage, offset, shape, strides)


def _tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None) -> TensorRef:
    if not (isinstance(dtype, Name) and dtype.path.removeprefix("torch.") in DTYPES):
        raise FormatError(f"a tensor's dtype is {type(dtype).__name__}; expected a torch dtype")
    return _tensor(storage, offset, shape, strides, dtype.value)


def _parameter(data, requires_grad, hooks, state=None) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise FormatError(f"a parameter is built from {type(data).__name__}; expected a tensor")
    return data


def _from_type(build, kind, arguments, state) -> TensorRef:
    """``_rebuild_from_type_v2``: a tensor that carries Python attributes, which are left behind."""
    if not (isinstance(build, Name) and build.path in REBUILD and type(arguments) is tuple):
        raise FormatError("_rebuild_from_type_v2 expects one of the rebuild functions and its arguments")
    if not (isinstance(kind, Name) and kind.path in ("torch.Tensor", "torch.nn.parameter.Parameter")):
        raise UnsafeFileError("a tensor of a Python subclass is refused; save plain tensors")
    return REBUILD[build.path](*arguments)


def _device(kind, index=None) -> str:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise FormatError("a torch.device is built from something other than a string and a number")
    if len(kind) > 64:
        raise UnsafeFileError(f"a torch.device's kind has {len(kind)} characters; expected a word such as 'cuda'")
    return kind if index is None else f"{kind}:{index}"


REBUILD: dict[str, Callable[..., TensorRef]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _rows() -> list[Name]:
    rows = [Name(path, build) for path, build in REBUILD.items()]
    rows += [
        Name("torch._tensor._rebuild_from_type_v2", _from_type),
        Name("torch.Size", lambda dims: naturals(dims, "a torch.Size")),
        Name("torch.device", _device),
        Name("torch.Tensor"),
        Name("torch.nn.parameter.Parameter"),
        Name("torch.storage.UntypedStorage", value="bytes"),
    ]
    rows += [Name(f"{home}.{kind}", value=d) for kind, d in STORAGES.items() for home in ("torch", "torch.cuda")]
    return rows + [Name(f"torch.{dtype}", value=dtype) for dtype in DTYPES]


NAMES: dict[str, Name] = {row.path: row for row in _rows()}
ORDERED_DICT = Name("collections.OrderedDict")  # built by the machine itself, which bounds its size
NAMES[ORDERED_DICT.path] = ORDERED_DICT


def lookup(module: Any, name: Any) -> Name:
    """The record of global ``module.name``; UnsafeFileError if it is not on the list."""
    path = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "of no readable name"
    if path not in NAMES or "." in name:
        raise UnsafeFileError(
            f"the file asks for the Python global {path[:200]}, which could run code and is refused. Weight files hold "
            "tensors alone: if this is a model or checkpoint pickled whole, save only its weights, in PyTorch with "
            "torch.save(model.state_dict(), path)"
        )
    return NAMES[path]


def persistent(identity: Any) -> StorageRef:
    """The storage meant by a persistent id: ('storage', type, key, location, count[, view of the legacy format])."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        if type(identity) is tuple and identity and identity[0] == "module":
            raise UnsafeFileError("the file holds a model pickled whole; save model.state_dict() instead")
        raise FormatError("a persistent id is not ('storage', type, key, location, count)")
    _, kind, key, _, count, *view = identity
    if not (isinstance(kind, Name) and kind.path.rpartition(".")[2] in STORAGES) or not isinstance(key, str):
        raise FormatError("a persistent id has no storage type or no key")
    whole = natural(count, f"the size of storage {key[:40]!r}")
    root = StorageRef(key, kind.value, whole, 0, whole)
    if not view or view[0] is None:
        return root
    if type(view[0]) is not tuple or len(view[0]) != 3:
        raise FormatError("the view of a storage is not (key, offset, size)")
    offset, size = natural(view[0][1], "a storage view's offset"), natural(view[0][2], "a storage view's size")
    if offset + size > root.whole:
        raise FormatError(f"a view of {size} elements at {offset} lies outside storage {key[:40]!r} of {root.whole}")
    return root._replace(offset=offset, size=size)
