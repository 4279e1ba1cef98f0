"""Measure twofold against other libraries: same machine, same run, same threads, interleaved, outputs checked.

    python benchmarks/compare.py                                   # everything; results.json, then docs/performance.md
    python benchmarks/compare.py --networks resnet18 --modes infer1 train8 --threads 1,2 --rounds 3 --no-docs
    python benchmarks/compare.py --budget 60 --resume              # what an earlier run left, in an hour
    python benchmarks/compare.py --python tensorflow=../other-venv/bin/python  # a peer's own interpreter
    python benchmarks/compare.py --render --results results.json               # tables and chart once more

Each peer is a process of its own (``peers.py``) that sleeps while another runs. A row is (network, mode, threads): the
weights and the input are written once (``inputs.py``), every peer loads and warms up, then rounds go through all peers in
turn (``rows.py``). Reported are medians, quartiles and the ratio of the best peer's median to ours (``tables.py``). A peer
that ends, takes longer than its limits or computes something else has the reason in the results instead of a time.

Rows are measured cheapest first and written as they are there. ``--budget`` is shared among the rows by what each would
take: slow peers get fewer rounds, at least two; rows for which nothing is left wait for ``--resume``. In the end, rows
during which the machine itself was slow (``speed.py``) or a contestant was unsteady by itself (``steady.py``) are measured
again; of the takes with a quick machine the steadiest is kept, whatever the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import rows as rows_of
import speed
import steady
import tables
from rows import HERE, INFERENCE, MODES, NETWORKS, TRAINING, Settings

# For the first estimate alone. Seconds to start, load and compile; multiply-adds a second on one thread.
START = {"twofold": 5, "onnxruntime": 1, "openvino": 2, "ncnn": 6, "torch": 4, "torch channels-last": 4}
START |= {"torch.compile": 45, "tensorflow": 9, "jax": 12}
RATE = 5e10
AGAIN = 2  # times at most that the rows of slow minutes, and unsteady ones, are measured again


class Key(NamedTuple):
    """What identifies a row."""

    network: str
    mode: str
    threads: int


Rows = dict[Key, dict[str, Any]]


def read(path: Path) -> Rows:
    """The rows of a results file (none if there is none), by key; of two with the same the later one."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {Key(r["network"], r["mode"], r["threads"]): r for r in map(json.loads, lines)}


def write(path: Path, rows: Rows) -> None:
    """All rows, one JSON object a line: aside, flushed, renamed, so that the file is always whole."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows.values())
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def estimate(key: Key, settings: Settings, known: Rows) -> float:
    """Seconds that a row will take: as it took with the same settings before, or from the network's multiply-adds."""
    import twofold as tw

    kind, batch = MODES[key.mode]
    step = tw.zoo.info(key.network).macs * batch * (3 if kind == "train" else 1) / RATE / key.threads
    peers = ["twofold", *(p for p in settings.peers if p in (INFERENCE if kind == "infer" else TRAINING))]
    earlier = known.get(key, {}).get("peers", {})
    seconds = 2.0
    for name in peers:
        found = earlier.get(name, {})
        start = found["import"] + found["first"] + found["converting"] if "converting" in found else START.get(name, 5)
        once = found["ms"] / 1e3 if "ms" in found else step * (1 if name == "twofold" else 3)
        seconds += start + 3 * once + settings.rounds * max(rows_of.TURN_SECONDS, once)
    return seconds


def line_of(key: Key, row: dict[str, Any]) -> str:
    """A row for the terminal."""
    found = {n: f"{p['ms']:.4g}" if tables.counts(p) else f"- ({p.get('error', '?')[:60]})" for n, p in row["peers"].items()}
    value = tables.ratio(row)
    times = "  ".join(f"{n} {text}" for n, text in found.items())
    return f"{key.network:16} {key.mode} {key.threads}t  ratio {f'{value:.2f}' if value else '-'}  {times}"


class Run:
    """Rows under measurement, written after each. ``takes`` are those of this run, all of each row."""

    def __init__(self, settings: Settings, results: Path, budget: float | None):
        self.settings, self.results, self.begun = settings, results, time.monotonic()
        self.until = None if budget is None else self.begun + budget * 60
        self.rows, self.takes = read(results), dict[Key, list[dict[str, Any]]]()

    def measure(self, keys: list[Key]) -> None:
        """Each row, cheapest first, as far as the time goes."""
        costs = {k: estimate(k, self.settings, self.rows) for k in keys}
        keys = sorted(keys, key=costs.__getitem__)
        print(f"{len(keys)} rows, about {sum(costs.values()) / 60:.0f} minutes{self._held()}", flush=True)
        for i, key in enumerate(keys):
            allowed = None
            if self.until is not None:
                left = self.until - time.monotonic()
                if left <= 0:
                    print(f"the budget is used up: {len(keys) - i} rows are left")
                    break
                allowed = left * costs[key] / sum(costs[k] for k in keys[i:])
            row = rows_of.measure(*key, replace(self.settings, budget=allowed))
            self.takes.setdefault(key, []).append(row)
            self.rows[key] = steady.kept(self.takes[key])
            write(self.results, self.rows)
            print(f"[{(time.monotonic() - self.begun) / 60:5.1f} min] {line_of(key, row)}", flush=True)

    def measure_again(self) -> None:
        """The rows of this run during which the machine gave less than in others, or a contestant was unsteady by itself, as
        long as there are any."""
        for _ in range(AGAIN):
            reasons = {k: why for k in self.takes if (why := self._why_again(k))}
            if reasons and (self.until is None or time.monotonic() < self.until):
                for why in sorted(set(reasons.values())):
                    print(f"again, for {why}: {', '.join(' '.join(map(str, k)) for k in reasons if reasons[k] == why)}")
                self.measure(list(reasons))

    def _why_again(self, key: Key) -> str:
        """Why what is kept of a row is not good enough; empty if it is."""
        row = self.rows[key]
        if speed.shares(self.rows[k] for k in self.takes).get(id(row), 1.0) < speed.SLOW:
            return "the machine was slow"
        unsteady = steady.unrest(row, steady.undisturbed(self.takes[key])) > steady.UNSTEADY
        return "a process was unsteady by itself" if unsteady else ""

    def _held(self) -> str:
        return "" if self.until is None else f", held to {(self.until - time.monotonic()) / 60:.0f}"


def pairs(items: list[str]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NETWORK")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--threads", default="2,1", help="numbers of threads, with commas")
    parser.add_argument("--peers", nargs="+", default=list(INFERENCE), metavar="PEER", help=", ".join(INFERENCE))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each peer in a row")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="for the whole run")
    parser.add_argument("--load-limit", type=float, default=180.0, metavar="SECONDS", help="for import, first step and all")
    parser.add_argument("--step-limit", type=float, default=60.0, metavar="SECONDS", help="for each step")
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="a peer's own interpreter")
    parser.add_argument("--worker", nargs="+", default=[], metavar="PEER=SCRIPT", help="a peer that peers.py does not know")
    parser.add_argument("--results", type=Path, default=Path("results.json"), help="rows, one JSON object a line")
    parser.add_argument("--resume", action="store_true", help="leave out the rows that --results has already")
    parser.add_argument("--no-docs", action="store_true")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the docs from --results")
    options = parser.parse_args()
    workers = pairs(options.worker)
    if unknown := set(options.peers) - {*INFERENCE, *workers}:
        parser.error(f"unknown peers {sorted(unknown)}; known are {', '.join(INFERENCE)}")
    if not options.render:
        threads = [int(n) for n in options.threads.split(",")]
        keys = [Key(n, m, t) for t in threads for m in options.modes for n in options.networks]
        settings = Settings(
            tuple(options.peers), max(1, options.rounds), options.load_limit, options.step_limit,
            pythons=pairs(options.python), workers=workers,
        )  # fmt: skip
        running = Run(settings, options.results, options.budget)
        running.measure([k for k in keys if not (options.resume and k in running.rows)])
        running.measure_again()
    if options.render or not options.no_docs:
        tables.write(list(read(options.results).values()), HERE.parent / "docs" / "performance.md")


if __name__ == "__main__":
    main()
