"""Compile training steps for an NVIDIA H100, and for four of them, on a machine that has none; count what XLA made of them.

    pip install -e '.[xla]' flatbuffers jax-cuda13-pjrt && pip install --no-deps jax-cuda13-plugin   # the versions of jax
    python benchmarks/gpu_compile.py --write                   # all cases, into docs/gpu-evidence.md (make gpu-compile)
    python benchmarks/gpu_compile.py --networks squeezenet1_1 --keep folder     # one network; keep the compiled programs

Nothing is run, so nothing here says how fast a program is, nor that its numbers are right. Rows are appended to the
results file as they finish, and a case that is there is not compiled again: an interrupted run loses nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

# XLA chooses kernels by timing them on the GPU. There is none: cuDNN and cuBLAS get every convolution and every product.
FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ["JAX_PLATFORMS"] = "cpu"  # where jax runs; the compiler for CUDA is loaded beside it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

import twofold as tw  # noqa: E402
from twofold.backends.interface import written_state  # noqa: E402
from twofold.train.evaluate import criterion_of  # noqa: E402

TARGET = Path(__file__).with_name("h100.txtpb")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu-evidence.md"
BEGIN, END = "<!-- compiled: benchmarks/gpu_compile.py -->", "<!-- end of compiled -->"
NETWORKS = ("resnet50", "vgg16", "densenet121", "googlenet", "squeezenet1_1")
BATCH = 64  # images on each device
MB = 1e6
KINDS = {
    "convForward": "forward", "convBiasActivationForward": "forward with bias or ReLU",
    "convBackwardInput": "input gradient", "convBackwardFilter": "weight gradient",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One program: a network's training step on some devices."""

    network: str
    devices: int = 1
    precision: str = "fp32"
    shard_state: bool = False
    per_replica: bool = False

    def __str__(self) -> str:
        extra = ", state sharded" * self.shard_state + ", batch norm per replica" * self.per_replica
        return f"{self.network}, {self.devices} x H100, {self.precision}{extra}"


CASES = [
    *(Case(network, devices) for network in NETWORKS for devices in (1, 4)),
    Case("resnet50", 4, per_replica=True),
    Case("resnet50", 4, shard_state=True),
    Case("resnet50", 1, "bf16"),
    Case("resnet50", 4, "bf16"),
]


@dataclass
class Counts:
    """What stands in a compiled program: calls of libraries by target, collectives, and numbers in the all-reduces."""

    convolutions: dict[str, int] = field(default_factory=dict)
    products: int = 0
    fusions: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    reduced: int = 0


_TARGET_OF = re.compile(r'custom_call_target="([^"]+)"')
_COLLECTIVE = re.compile(r"= (.+?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\(")
_FLOATS = re.compile(r"\b(?:f32|bf16|f16)\[([\d,]*)\]")


def count(hlo: str) -> Counts:
    """The counts of a compiled program's text. Fusions are those of the entry computation: a kernel or more each."""
    calls = Counter(_TARGET_OF.findall(hlo))
    found = Counts(
        convolutions={n.removeprefix("__cudnn$"): c for n, c in sorted(calls.items()) if n.startswith("__cudnn$conv")},
        products=sum(c for n, c in calls.items() if n.startswith("__cublas$")),
        fusions=len(re.findall(r" fusion\(", hlo[hlo.rindex("\nENTRY ") :])),
    )
    collectives: Counter[str] = Counter()
    for shapes, kind in _COLLECTIVE.findall(hlo):
        collectives[kind] += 1
        if kind == "all-reduce":
            found.reduced += sum(prod(int(n) for n in s.split(",") if n) for s in _FLOATS.findall(shapes))
    found.collectives = dict(collectives)
    return found


def training_step(case: Case) -> Any:
    """The optimised graph of a step: loss, gradients, SGD with momentum. Its state is on no GPU."""
    tw.random.seed(0)
    entry = tw.zoo.info(case.network)
    model = tw.zoo.create(case.network)
    loss_of = criterion_of(model)
    optimizer = tw.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    @tw.compile(precision=case.precision)
    def step(images: Any, labels: Any) -> Any:
        with tw.nn.batch_statistics(case.devices if case.per_replica else 1):
            loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    batch = BATCH * case.devices
    return step.graph(np.zeros((batch, *entry.input_shape), np.float32), np.zeros(batch, np.int64))


def topology(devices: int) -> Any:
    """The devices that are compiled for."""
    from jax.experimental import topologies

    options = {"target_config": TARGET.read_text(), "topology": f"1x1x{devices}"}
    try:
        return topologies.get_topology_desc(platform="cuda", topology_name="h100", **options)
    except Exception as error:
        raise SystemExit(
            f"jax cannot compile for CUDA here ({type(error).__name__}: {error}); install jax-cuda13-plugin and "
            "jax-cuda13-pjrt of jax's own version (see the top of this file)"
        ) from error


def compile_graph(graph: Any, case: Case) -> Any:
    """The graph, compiled as the ``"gpu"`` device would."""
    import jax

    from twofold.backends.xla import runtime
    from twofold.backends.xla.placement import Placement
    from twofold.backends.xla.program import jitted

    where = Placement(tuple(topology(case.devices).devices), case.shard_state)
    with runtime.x64():
        function, layout = jitted(graph, where, written_state(graph), [])
        values = graph.all_inputs
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype.numpy, sharding=s) for v, s in zip(values, layout)]
        return function.trace(*shapes).lower(lowering_platforms=("cuda",)).compile()


def measure(case: Case, keep: Path | None) -> dict[str, Any]:
    """One row: what the graph asks for, what the program has, and its memory on each device in bytes."""
    import jax

    graph = training_step(case)
    kinds = Counter(node.op.kind for node in graph.nodes)
    row: dict[str, Any] = {"case": asdict(case), "asked": {"conv": kinds["conv"], "matmul": kinds["matmul"]}}
    row["jax"], row["parameters"] = jax.__version__, tw.zoo.info(case.network).params
    start = time.perf_counter()
    try:
        compiled = compile_graph(graph, case)
    except Exception as error:  # a network that XLA refuses is a row that says why
        row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return row
    row["seconds"] = time.perf_counter() - start
    text = compiled.as_text()
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{'_'.join(map(str, asdict(case).values()))}.hlo").write_text(text)
    row["counts"] = asdict(count(text))
    memory = compiled.memory_analysis()
    row["memory"] = {
        "arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
    }  # fmt: skip
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Two Markdown tables: calls, and memory."""
    calls = [
        "| training step | cuDNN convolutions (asked) | cuBLAS products (asked) | fusions | collectives "
        "| floats all-reduced (parameters) | compiled in |",
        "|---|---|---|---|---|---|---|",
    ]
    memory = ["| training step | arguments | of these donated | temporaries | outputs | together |", "|---" * 6 + "|"]
    for row in rows:
        case = Case(**row["case"])
        if "error" in row:
            calls.append(f"| {case} | not compiled: {row['error']} | | | | | |")
            continue
        c, asked, m = Counts(**row["counts"]), row["asked"], row["memory"]
        kinds = ", ".join(f"{n} {KINDS.get(k, k)}" for k, n in c.convolutions.items())
        collectives = ", ".join(f"{n} {k}" for k, n in sorted(c.collectives.items())) or "none"
        reduced = f"{c.reduced:,} ({row['parameters']:,})" if c.reduced else "-"
        calls.append(
            f"| {case} | {sum(c.convolutions.values())} ({asked['conv']}): {kinds} | {c.products} ({asked['matmul']}) "
            f"| {c.fusions} | {collectives} | {reduced} | {row['seconds']:.0f} s |"
        )
        together = m["arguments"] + m["temporaries"] + m["outputs"] - m["donated"]
        sizes = (m["arguments"], m["donated"], m["temporaries"], m["outputs"], together)
        memory.append(f"| {case} | {' | '.join(f'{size / MB:,.0f} MB' for size in sizes)} |")
    return "\n".join([*calls, "", f"Memory of each device, {BATCH} images on each:", "", *memory])


def write(text: str) -> None:
    """The text between the markers of the page."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def known(path: Path) -> dict[Case, dict[str, Any]]:
    """The rows of a results file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {Case(**row["case"]): row for row in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", help="only the cases of these (any of the zoo)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write each compiled program's HLO there")
    parser.add_argument("--results", type=Path, default=Path("gpu-compile.json"), help="rows, one JSON object a line")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/gpu-evidence.md")
    options = parser.parse_args()
    cases = [c for c in CASES if options.networks is None or c.network in options.networks]
    for network in options.networks or []:
        cases += [] if any(c.network == network for c in cases) else [Case(network, 1), Case(network, 4)]
    rows = known(options.results)
    for case in cases:
        if case not in rows:
            rows[case] = measure(case, options.keep)
            with options.results.open("a") as stream:
                stream.write(json.dumps(rows[case]) + "\n")
        print(table([rows[case]]), flush=True)
    versions = ", ".join(sorted({rows[case]["jax"] for case in cases}))
    if options.write:
        write(f'jax {versions}, `XLA_FLAGS="{" ".join(FLAGS)}"`.\n\n{table([rows[case] for case in cases])}')


if __name__ == "__main__":
    main()
