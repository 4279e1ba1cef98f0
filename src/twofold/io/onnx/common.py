"""What writer and reader share: versions, the custom domain, dtypes, and how attributes of our own ops are written.

Opset 20 (ONNX 1.15, IR version 9) is the oldest with a standard ``Gelu``, with reductions that take their axes as an
input, and with both ``AveragePool`` ceil-mode fixes; every ONNX Runtime since 1.17 runs it.
"""

from __future__ import annotations

import json
from typing import Any

from onnx import AttributeProto, TensorProto, helper

from twofold.base.dims import Sym, parse_dim
from twofold.base.dtypes import BY_NAME, DType, as_dtype
from twofold.base.errors import FormatError, UnsupportedOpError

OPSET = 20
IR_VERSION = 9
STANDARD = ("", "ai.onnx")  # both name the standard domain
DOMAIN = "ai.twofold"  # ops of our table that have no standard operator
DOMAIN_VERSION = 1
METADATA = "twofold"  # key of our JSON among the model's metadata_props
MAX_NESTING = 16  # sub-graphs and functions inside one another

_ONNX_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}
TO_ONNX: dict[DType, int] = {d: TensorProto.DataType.Value(_ONNX_NAMES.get(n, n.upper())) for n, d in BY_NAME.items()}
FROM_ONNX: dict[int, DType] = {code: dtype for dtype, code in TO_ONNX.items()}


def from_onnx(code: int, what: str) -> DType:
    """The dtype of an ONNX element type; ``what`` says where it stood."""
    dtype = FROM_ONNX.get(code)
    if dtype is None:
        known = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else code
        raise UnsupportedOpError(f"{what}: element type {known} is not supported; expected one of {', '.join(BY_NAME)}")
    return dtype


# ---- attributes of ops in our own domain -----------------------------------------------------------------------------
# ints and tuples of ints are native; all else is JSON text, in which tuples are lists and a dtype or
# a symbolic dim is an object with one key


def write_attribute(name: str, value: Any) -> AttributeProto:
    """One attribute of one of our ops. Sub-graphs have none: every op that holds them is a standard operator."""
    if _is_int(value):
        return helper.make_attribute(name, value)
    if isinstance(value, tuple) and value and all(map(_is_int, value)):
        return helper.make_attribute(name, list(value))
    return helper.make_attribute(name, json.dumps(_plain(value)))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, DType):
        return {"dtype": value.name}
    if isinstance(value, Sym):
        return {"dim": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UnsupportedOpError(f"an attribute of type {type(value).__name__} cannot be written to an ONNX file")


def read_attribute(attribute: AttributeProto) -> Any:
    """The attribute that ``write_attribute`` wrote; FormatError for anything else."""
    if attribute.type == AttributeProto.INT:
        return attribute.i
    if attribute.type == AttributeProto.INTS:
        return tuple(attribute.ints)
    if attribute.type == AttributeProto.STRING:
        try:
            return _revived(json.loads(attribute.s))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"attribute {attribute.name!r} cannot be read: {error}") from None
    raise FormatError(f"attribute {attribute.name!r} has type {attribute.type}; expected INT, INTS or STRING")


def _revived(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_revived, value))
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(value.get("dtype"), str):
            return as_dtype(value["dtype"])
        if len(value) == 1 and isinstance(value.get("dim"), str) and len(value["dim"]) < 512:
            return parse_dim(value["dim"])
        raise FormatError(f"attribute value {str(value)[:80]!r} is not known")
    return value
