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
from gpu import NETWORKS, PAGE  # noqa: E402

import twofold as tw  # noqa: E402
from twofold.backends.interface import written_state  # noqa: E402
from twofold.train.evaluate import criterion_of  # noqa: E402

TARGET = Path(__file__).with_name("h100.txtpb")
BEGIN, END = "<!-- compiled: benchmarks/gpu_compile.py -->", "<!-- end of compiled -->"
BATCH = 64  # images on each device
MB = 1e6
# op of the graph -> what the table calls it; jax keeps the op's name in the metadata of each call
CONVOLUTIONS = {"conv": "forward", "conv_input_grad": "input gradient", "conv_weight_grad": "weight gradient"}


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
    """What stands in a compiled program.

    ``convolutions``: calls of cuDNN by what the graph asked for, and how many of them, ``fused``, also add a bias or a
    sum or apply a ReLU; ``types`` of their results. ``products``: calls of cuBLAS. ``fusions`` of the entry computation,
    a kernel of XLA's own or more each, ``triton`` of them in Triton; ``turned``: bytes written only to change a layout.
    ``collectives`` by kind, and the floats in the all-reduces, ``reduced``.
    """

    convolutions: dict[str, int] = field(default_factory=dict)
    fused: int = 0
    types: dict[str, int] = field(default_factory=dict)
    products: int = 0
    fusions: int = 0
    triton: int = 0
    turned: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    reduced: int = 0


_CALL = re.compile(r'= \(?(\w+)\[.* custom-call\(.*custom_call_target="__(cudnn\$conv\w+|cublas\$[\w$]+)"')
_ASKED = re.compile(r'op_name="[^"]*?(conv_input_grad|conv_weight_grad)')
_COLLECTIVE = re.compile(r"= (.+?) (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*?)(\d+)?\[([\d,]*)\]")
_TURN = re.compile(r"= (\S+) (?:copy|transpose)\(|= (\S+) fusion\(.*calls=%?wrapped_(?:transpose|copy)")


def _arrays(shapes: str) -> list[tuple[str, int, int]]:
    """(kind, bytes of an element, elements) of each array of a type in HLO."""
    found = _ARRAY.findall(shapes)
    return [
        (kind, max(1, int(bits or 8) // 8), prod(int(n) for n in dims.split(",") if n)) for kind, bits, dims in found
    ]


def count(hlo: str) -> Counts:
    """The counts of a compiled program's text."""
    found, collectives = Counts(), Counter[str]()
    convolutions, types = Counter[str](), Counter[str]()
    for line in hlo.splitlines():
        if call := _CALL.search(line):
            dtype, target = call.groups()
            if target.startswith("cublas"):
                found.products += 1
                continue
            asked = _ASKED.search(line)
            convolutions[CONVOLUTIONS[asked[1] if asked else "conv"]] += 1
            types[dtype] += 1
            found.fused += "BiasActivation" in target
        elif call := _COLLECTIVE.search(line):
            collectives[call[2]] += 1
            if call[2] == "all-reduce":
                found.reduced += sum(n for kind, _, n in _arrays(call[1]) if kind in ("f", "bf"))
    entry = hlo[hlo.rindex("\nENTRY ") :]
    found.fusions = len(re.findall(r" fusion\(", entry))
    found.triton = entry.count("__triton")
    turns = (a or b for a, b in _TURN.findall(entry))
    found.turned = sum(size * n for shapes in turns for _, size, n in _arrays(shapes))
    found.convolutions, found.types, found.collectives = dict(convolutions), dict(types), dict(collectives)
    return found


def asked_of(graph: Any) -> dict[str, int]:
    """How many convolutions of each kind, and products, a graph has."""
    ops = Counter(node.op.name for node in graph.nodes)
    return {**{text: ops[name] for name, text in CONVOLUTIONS.items()}, "matmul": ops["matmul"]}


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
    row: dict[str, Any] = {"case": asdict(case), "asked": asked_of(graph)}
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


def _against(counted: dict[str, int], asked: dict[str, int]) -> str:
    """``53 / 52 / 53 of 53 / 52 / 53``."""
    had, wanted = ([str(source.get(kind, 0)) for kind in CONVOLUTIONS.values()] for source in (counted, asked))
    return f"{' / '.join(had)} of {' / '.join(wanted)}"


def table(rows: list[dict[str, Any]]) -> str:
    """Three Markdown tables: calls of libraries, collectives, memory."""
    calls = [
        "| training step | cuDNN: forward / input gradient / weight gradient, of those asked | dtype | with a bias, a sum or "
        "a ReLU inside | cuBLAS, of those asked | XLA's own fusions (Triton) | turned | compiled in |",
        "|---" * 8 + "|",
    ]
    collectives = ["| training step | collectives | floats all-reduced | parameters |", "|---" * 4 + "|"]
    memory = ["| training step | arguments | of these donated | temporaries | outputs | together |", "|---" * 6 + "|"]
    for row in rows:
        case = Case(**row["case"])
        if "error" in row:
            calls.append(f"| {case} | not compiled: {row['error']} | | | | | | |")
            continue
        c, asked, m = Counts(**row["counts"]), row["asked"], row["memory"]
        calls.append(
            f"| {case} | {_against(c.convolutions, asked)} | {', '.join(c.types)} | {c.fused} | {c.products} of "
            f"{asked['matmul']} | {c.fusions} ({c.triton}) | {c.turned / MB:,.0f} MB | {row['seconds']:.0f} s |"
        )
        if case.devices > 1:
            kinds = ", ".join(f"{n} {k}" for k, n in sorted(c.collectives.items()))
            collectives.append(f"| {case} | {kinds} | {c.reduced:,} | {row['parameters']:,} |")
        together = m["arguments"] + m["temporaries"] + m["outputs"] - m["donated"]
        sizes = (m["arguments"], m["donated"], m["temporaries"], m["outputs"], together)
        memory.append(f"| {case} | {' | '.join(f'{size / MB:,.0f} MB' for size in sizes)} |")
    batch = f"Memory of each device, {BATCH} images on each:"
    return "\n".join([*calls, "", *collectives, "", batch, "", *memory])


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
