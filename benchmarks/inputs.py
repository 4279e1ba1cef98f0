"""What the peers of a row are given, all the same numbers: a folder of files.

    meta.json             the network's name and the learning rate
    x.npy, y.npy          random images (never zeros) and labels
    model.safetensors     the weights, for twofold
    model.onnx            the network, for runtimes that read ONNX; single.onnx for one image
    graph.json            the same graph for libraries that run it with their own functions: see ``nhwc.py``, ``peer_torch.py``
    weights/K.npy         what that graph learns, an array a file, so that a worker never holds the weights twice
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LEARNED = {"Conv": (1, 3), "Gemm": (1, 3), "BatchNormalization": (1, 5)}  # operator -> which of its inputs are weights

# Learning rates with which three steps change the loss enough to be compared, and not so much that rounding leads elsewhere
RATES = {"lenet5": 0.1, "googlenet": 0.0001, "resnext50_32x4d": 0.00003}


def write(network: str, batch: int, folder: Path) -> None:
    """Fill ``folder`` for a network of the zoo, its weights random (``calibrate`` sees to their scale)."""
    import twofold as tw

    tw.random.seed(0)
    entry, model = tw.zoo.info(network), tw.zoo.create(network)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *entry.input_shape)).astype(np.float32)
    calibrate(model, tw.tensor(x))
    model.eval()
    with tw.no_grad():
        classes = int(model(tw.tensor(x[:1])).shape[-1])
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", rng.integers(0, classes, batch))
    (folder / "meta.json").write_text(json.dumps({"network": network, "rate": RATES.get(network, 0.001)}))
    tw.save_weights(model, folder / "model.safetensors")
    tw.export(model, (tw.tensor(x),), str(folder / "model.onnx"), dynamic_batch=False)
    tw.export(model, (tw.tensor(x[:1]),), str(folder / "single.onnx"), dynamic_batch=False)
    write_graph(folder)


def calibrate(model: Any, x: Any) -> None:
    """Give batch norms the statistics of these images: with those of a fresh network activations can vanish, and
    arithmetic on denormal numbers would be measured."""
    import twofold as tw

    norms = [m for m in model.modules() if type(m).__name__.startswith("BatchNorm")]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    model.train()
    with tw.no_grad():
        model(x)
    for m, momentum in zip(norms, before):
        m.momentum = momentum


def write_graph(folder: Path) -> None:
    """``graph.json`` and ``weights/`` from ``model.onnx``."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(folder / "model.onnx").graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
    learned: dict[str, str] = {}
    (folder / "weights").mkdir()
    for node in graph.node:
        a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(a["value"])
            continue
        first, end = LEARNED.get(node.op_type, (0, 0))
        for name in node.input[first:end]:
            if name not in learned:
                learned[name] = f"weights/{len(learned)}.npy"
                np.save(folder / learned[name], values[name])
        plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in a.items()}
        nodes.append((node.op_type, list(node.input), list(node.output), plain))
    used = {i for _, inputs, _, _ in nodes for i in inputs}
    constants = {k: (str(v.dtype), v.tolist()) for k, v in values.items() if k in used and k not in learned}
    facts = {
        "input": graph.input[0].name, "output": graph.output[0].name, "nodes": nodes, "constants": constants,
        "learned": learned,
    }  # fmt: skip
    (folder / "graph.json").write_text(json.dumps(facts))
