"""A graph with its state -> ModelProto.

Inference: state is initializers under their own names (``conv1.weight``). A graph that writes state (a training step)
gets, for each written variable, an input with the present value as default and an output with the next one. The
model's ``metadata_props`` say which is which, so that a reader carries the state from call to call:

    {"version": 1, "inputs": [...], "outputs": [...], "structure": ..., "state": [{"name", "input", "output"}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from twofold.base.errors import FormatError
from twofold.io.onnx.common import DOMAIN, DOMAIN_VERSION, IR_VERSION, METADATA, OPSET
from twofold.io.onnx.export.emitter import Emitter, tensor, value_info
from twofold.io.onnx.export.graph import emit_nodes
from twofold.ir import Graph

LIMIT = (1 << 31) - 1  # bytes of one protobuf message


def to_model(
    graph: Graph,
    arrays: Sequence[np.ndarray],
    *,
    output_names: Sequence[str] = (),
    structure: Any = None,
    portable: bool | None = None,
) -> ModelProto:
    """The model of ``graph``; ``arrays`` are its state's present values, in order.

    ``portable`` (default: if no state is written) allows composites to be raised and ops to be combined from several
    standard operators; otherwise every op keeps its meaning to the bit. ``structure`` is kept for the reader.
    """
    written = any(s.written for s in graph.state)
    size = sum(a.nbytes for a in arrays)
    if size > LIMIT - (64 << 20):
        raise FormatError(f"{graph.name}: {size} bytes of state do not fit an ONNX file, which holds 2 GiB")
    e = Emitter(graph, portable=not written if portable is None else portable)
    inputs = _inputs(e)
    entry = _state(e, arrays, inputs)
    emit_nodes(e)
    outputs, exits = _outputs(e, output_names)
    meta = {
        "version": 1,
        "inputs": [e.names[v] for v in graph.inputs],
        "outputs": [o.name for o in outputs[: len(graph.outputs)]],
        "structure": structure,
        "state": [{"name": i, "input": i, "output": o} for i, o in zip(entry, exits)],
    }
    opsets = [helper.make_opsetid("", OPSET)]
    if e.uses_domain:
        opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    model = helper.make_model(
        e.proto(inputs, outputs), opset_imports=opsets, ir_version=IR_VERSION, producer_name="twofold"
    )
    helper.set_model_props(model, {METADATA: json.dumps(meta)})
    return model


def _inputs(e: Emitter) -> list[ValueInfoProto]:
    infos = []
    for i, value in enumerate(e.graph.inputs):
        e.names[value] = e.fresh(value.name or f"input{i}")
        infos.append(value_info(e.names[value], value.spec))
    return infos


def _state(e: Emitter, arrays: Sequence[np.ndarray], inputs: list[ValueInfoProto]) -> list[str]:
    """Names of the state's entry values; written state is also an input, whose initializer is the default."""
    names = []
    for state, array in zip(e.graph.state, arrays, strict=True):
        name = e.names[state.input] = e.fresh(state.name)
        e.initializers.append(tensor(np.asarray(array), name))
        if state.written:
            inputs.append(value_info(name, state.input.spec))
        names.append(name)
    return names


def _outputs(e: Emitter, wanted: Sequence[str]) -> tuple[list[ValueInfoProto], list[str]]:
    """Graph outputs under the names wanted, then the written state's; each from a value nobody else exports."""
    graph = e.graph
    labels = [
        *wanted,
        *["output" if len(graph.outputs) == 1 else f"output{i}" for i in range(len(wanted), len(graph.outputs))],
    ]
    renames: dict[str, str] = {}
    infos, exits = [], []
    made = {o for n in e.nodes for o in n.output}
    rows = [*zip(graph.outputs, labels), *((s.output, f"{s.name}:next") for s in graph.state)]
    states = [None] * len(graph.outputs) + list(graph.state)
    for (value, label), state in zip(rows, states):
        inner = e.names[value]
        if state is not None and not state.written:
            exits.append(inner)
            continue
        final = e.fresh(label)
        if inner in made and inner not in renames:
            renames[inner] = final
        else:
            e.nodes.append(helper.make_node("Identity", [inner], [final], name=e.fresh("Identity")))
        infos.append(value_info(final, value.spec))
        if state is not None:
            exits.append(final)
    e.infos = [i for i in e.infos if i.name not in renames]
    for node in e.nodes:
        _rename(node, renames)
    return infos, exits


def _rename(node: Any, renames: dict[str, str]) -> None:
    """Names changed in a node and in the sub-graphs that see them."""
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            if name in renames:
                names[i] = renames[name]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _rename_graph(attribute.g, renames)


def _rename_graph(graph: GraphProto, renames: dict[str, str]) -> None:
    for node in graph.node:
        _rename(node, renames)
    for info in graph.output:
        info.name = renames.get(info.name, info.name)
