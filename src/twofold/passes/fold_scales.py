"""fold_scales: what multiplies the channels of a convolution goes into its weights, where those are the same at every call.

    conv(x, w) * s           becomes    conv(x, w * s)
    (conv(x, w) + b) * s     becomes    conv(x, w * s) + b * s
    (conv(x, w) + b) + t     becomes    conv(x, w) + (b + t)

for ``s``, ``b``, ``t`` with one number for each output channel (batch norm at inference), made like ``w`` of constants and
of state that the graph does not write. A backend may work out ``w * s`` once. 16-bit convolutions are left alone: their
weights would be rounded twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from twofold.ir import Graph, Node, Value
from twofold.ir.rewrite import Rebuilt, rebuild


class _Form(NamedTuple):
    """A value as ``conv + shift``, in the new graph."""

    conv: Value
    shift: Value | None


def fold_scales(graph: Graph) -> Graph:
    """``graph`` with scales in the weights."""
    fixed = graph.unchanging()
    readers = Counter([*graph.all_outputs, *(v for node in graph.nodes for v in node.inputs)])
    forms: dict[Value, _Form] = {}

    def rule(new: Rebuilt, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node.op.name == "conv" and node.inputs[1] in fixed and node.output.dtype.bits >= 32:
            outputs = new.copy(node, inputs)
            forms[node.output] = _Form(outputs[0], None)
            return outputs
        if node.op.name not in ("add", "multiply"):
            return None
        for (old, other), by in zip((node.inputs, node.inputs[::-1]), inputs[::-1]):
            form = forms.get(old)
            if form is None or readers[old] > 1 or other not in fixed or not _per_channel(by, node.output, form):
                continue
            form = forms[node.output] = (_scaled if node.op.name == "multiply" else _shifted)(new, form, by, node.scope)
            if form.shift is None:
                return (form.conv,)
            return new.emit("add", (form.conv, form.shift), {}, node.scope)
        return None

    return rebuild(graph, rule)


def _per_channel(by: Value, out: Value, form: _Form) -> bool:
    """Whether ``by`` is a number, or one for each channel of ``out``, which has the shape of the convolution."""
    laid = (1,) * (out.ndim - by.ndim) + by.shape
    return out.spec == form.conv.spec and all(size == 1 for axis, size in enumerate(laid) if axis != 1)


def _scaled(new: Rebuilt, form: _Form, by: Value, scope: str) -> _Form:
    conv: Node = form.conv.producer  # type: ignore[assignment]
    x, w = conv.inputs
    (over_outputs,) = new.emit("reshape", (by,), {"shape": (by.size, *(1,) * (w.ndim - 1))}, scope)
    (scaled,) = new.emit("multiply", (w, over_outputs), {}, scope)
    (out,) = new.emit(conv.op, (x, scaled), conv.attrs, conv.scope)
    shift = None if form.shift is None else new.emit("multiply", (form.shift, by), {}, scope)[0]
    return _Form(out, shift)


def _shifted(new: Rebuilt, form: _Form, by: Value, scope: str) -> _Form:
    return form._replace(shift=by if form.shift is None else new.emit("add", (form.shift, by), {}, scope)[0])
