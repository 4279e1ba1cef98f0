"""Single convolution kernels beside PyTorch (channels-last) and the core's own peak, interleaved in one process, checked.

    python benchmarks/conv_kernels.py --threads 1                          # the shapes of WELL_KNOWN
    python benchmarks/conv_kernels.py --shapes resnet50 --threads 1,2      # every convolution of a network, once each
    python benchmarks/conv_kernels.py --shapes resnet50 --only 1x1 56 --passes forward --rounds 9
    python benchmarks/conv_kernels.py --shapes densenet121 --most 8 --markdown results.md

A line is a shape and a pass. GFLOP/s count the direct algorithm's operations, whatever is done. ``kernel`` is ours with
weights prepared, as a program runs it in inference; ``whole`` adds the preparation of the weights (for the weight gradient:
bringing it into users' order), which is what one call of PyTorch's does. ``share`` is the kernel's share of the peak:
multiply-adds on registers, on as many threads, in the same rounds. Errors are largest differences over the largest value,
against float64.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PASSES = ("forward", "data", "weights")
TURN_SECONDS = 0.02  # of one contestant in one round
# (batch, size, in, out, kernel, stride, pad, groups)
WELL_KNOWN = [
    (8, 56, 64, 64, 3, 1, 1, 1), (8, 28, 128, 128, 3, 1, 1, 1), (8, 14, 256, 256, 3, 1, 1, 1), (8, 7, 512, 512, 3, 1, 1, 1),
    (1, 224, 64, 64, 3, 1, 1, 1), (8, 56, 256, 64, 1, 1, 0, 1), (8, 14, 1024, 256, 1, 1, 0, 1), (8, 224, 3, 64, 7, 2, 3, 1),
    (8, 227, 3, 96, 11, 4, 0, 1), (8, 56, 64, 128, 3, 2, 1, 1), (8, 14, 256, 512, 3, 2, 1, 1), (8, 27, 96, 256, 5, 1, 2, 1),
    (8, 13, 256, 384, 3, 1, 1, 1), (8, 14, 512, 128, 1, 1, 0, 1), (8, 14, 128, 32, 3, 1, 1, 1), (8, 56, 128, 128, 3, 1, 1, 32),
    (8, 28, 256, 256, 3, 1, 1, 32), (8, 14, 512, 512, 3, 1, 1, 32),
]  # fmt: skip


def shapes(name: str, batch: int) -> list[tuple[Any, int]]:
    """(convolution, how often) of a network of the zoo at its own input size, or of WELL_KNOWN."""
    from twofold.backends.cpu.kernels.shapes import Conv

    if name == "well-known":
        return [
            (Conv(n, s, s, c, o, k, k, (d, d), ((p, p), (p, p)), (1, 1), g), 1) for n, s, c, o, k, d, p, g in WELL_KNOWN
        ]
    import twofold as tw

    model = tw.zoo.create(name)
    model.eval()
    graph = tw.compile(lambda x: model(x)).graph(tw.ones((batch, *tw.zoo.info(name).input_shape)))
    found: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op.name == "conv":
            (n, c, h, w), (o, _, kh, kw) = (tuple(map(int, v.spec.shape)) for v in node.inputs[:2])
            a = node.attrs
            conv = Conv(n, h, w, c, o, kh, kw, a["strides"], a["padding"], a["dilation"], a["groups"])
            found[conv] = found.get(conv, 0) + 1
    return list(found.items())


def label(conv: Any) -> str:
    """As one would say it: ``3x3/2 56x56 64->128 g32``."""
    stride = f"/{conv.stride[0]}" if conv.stride[0] > 1 else ""
    groups = f" g{conv.groups}" if conv.groups > 1 else ""
    return f"{conv.kh}x{conv.kw}{stride} {conv.h}x{conv.w} {conv.c}->{conv.o}{groups}" + (f" N={conv.n}" if conv.n != 8 else "")


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """NaN everywhere, at a cache line."""
    count = int(np.prod(shape))
    raw = np.full(count + 16, np.nan, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + count].reshape(shape)


@dataclass
class Contestant:
    """Something that computes a pass: ``run`` once, its times, and the result in users' order."""

    run: Callable[[], Any]
    result: Callable[[], np.ndarray]
    seconds: list[float] = field(default_factory=list)
    repeat: int = 1

    def warm(self) -> None:
        self.run()
        start = time.perf_counter()
        self.run()
        self.repeat = max(1, int(TURN_SECONDS / (time.perf_counter() - start)))

    def turn(self) -> None:
        for _ in range(self.repeat):
            start = time.perf_counter()
            self.run()
            self.seconds.append(time.perf_counter() - start)


class Problem:
    """One convolution, its random data (channels-last, weights in users' order) and the float64 results."""

    def __init__(self, conv: Any):
        rng = np.random.default_rng(0)
        self.conv = conv
        self.x, self.dy = aligned((conv.n, conv.h, conv.w, conv.c)), aligned((conv.n, conv.oh, conv.ow, conv.o))
        self.w = aligned((conv.o, conv.cg, conv.kh, conv.kw))
        for array in (self.x, self.dy, self.w):
            array[...] = rng.standard_normal(array.shape, np.float32)

    def contestants(self, which: str, threads: int, torch: bool) -> dict[str, Contestant]:
        found = {"kernel": self._ours(which, threads, False), "whole": self._ours(which, threads, True)}
        return found | ({"torch": self._torch(which)} if torch else {})

    def algorithm(self, which: str) -> str:
        return self._choice(which).algorithm

    def _choice(self, which: str) -> Any:
        from twofold.backends.cpu.kernels import choose
        from twofold.backends.cpu.machine import host

        if which == "forward":
            return choose.forward(host(), self.conv, constant=True)
        return (choose.data_gradient if which == "data" else choose.weight_gradient)(host(), self.conv)

    def _ours(self, which: str, threads: int, whole: bool) -> Contestant:
        from twofold.backends.cpu.kernels import choose, weights
        from twofold.backends.cpu.machine import host

        choice = self._choice(which)
        if which == "weights":
            packed, plain = aligned((choice.weights.size,)), aligned(self.w.shape)
            unpack = weights.repack(host(), choice.weights, choose.plain_weights(host(), self.conv))
            run = _program([(choice.kernel, [self.x, self.dy, packed])] + [(unpack, [packed, plain])] * whole, threads)
            final = _program([(unpack, [packed, plain])], 1)
            return Contestant(run, lambda: (final(), plain)[1])
        source, out = self.w, aligned(self.dy.shape if which == "forward" else self.x.shape)
        steps = []
        for step in choice.prepare:
            target = aligned((step.size,))
            steps.append((step.kernel, [source, target]))
            source = target
        _program(steps, 1)()
        kernel = (choice.kernel, [self.x if which == "forward" else self.dy, source, out])
        return Contestant(_program([*(steps if whole else []), kernel], threads), lambda: out)

    def _torch(self, which: str) -> Contestant:
        import torch

        c = self.conv
        x, dy, w = (torch.from_numpy(a) for a in (self.x, self.dy, self.w))
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
        w = w.contiguous(memory_format=torch.channels_last)
        run = _torch_pass(which, c, x, dy, w)
        return Contestant(run, lambda: _users(which, run()))

    def oracle(self, which: str) -> np.ndarray:
        """Float64, by PyTorch in its own layout."""
        import torch

        x, dy, w = (torch.from_numpy(a).double() for a in (self.x, self.dy, self.w))
        run = _torch_pass(which, self.conv, x.permute(0, 3, 1, 2).contiguous(), dy.permute(0, 3, 1, 2).contiguous(), w)
        return _users(which, run())


def _torch_pass(which: str, c: Any, x: Any, dy: Any, w: Any) -> Callable[[], Any]:
    import torch

    pad = [c.pad[0][0], c.pad[1][0]]
    if [c.pad[0][1], c.pad[1][1]] != pad:
        raise SystemExit(f"{label(c)}: PyTorch has no uneven pads {c.pad}; leave this shape out with --only")
    if which == "forward":
        return lambda: torch.nn.functional.conv2d(x, w, None, c.stride, pad, c.dilation, c.groups)
    mask = [which == "data", which == "weights", False]
    backward = torch.ops.aten.convolution_backward
    index = 0 if which == "data" else 1
    return lambda: backward(dy, x, w, None, c.stride, pad, c.dilation, False, [0, 0], c.groups, mask)[index]


def _users(which: str, result: Any) -> np.ndarray:
    """Images as (n, h, w, c), weights as (o, i, kh, kw)."""
    return (result if which == "weights" else result.permute(0, 2, 3, 1)).numpy()


def _program(calls: list[tuple[Any, list[np.ndarray]]], threads: int) -> Callable[[], None]:
    """One program of kernels with barriers between, bound to its arrays."""
    from twofold.backends.cpu.machine import host
    from twofold.backends.cpu.program import ProgramBuilder, Ref

    builder, arrays = ProgramBuilder(host()), list[np.ndarray]()
    for kernel, given in calls:
        extra = [aligned((size // 4,)) for size in (kernel.workspace, kernel.scratch * threads) if size]
        builder.call(kernel, [Ref(len(arrays) + k) for k in range(len(given) + len(extra))])
        builder.barrier()
        arrays += [*given, *extra]
    program, pointers = builder.finish(), [a.ctypes.data for a in arrays]

    def run(keep: Any = arrays) -> None:
        program.run(pointers, threads)

    return run


def measure(conv: Any, which: str, threads: int, rounds: int, torch: bool) -> dict[str, Any]:
    """One line: medians in GFLOP/s, errors."""
    from twofold.backends.cpu.calibrate import fma_rate

    problem = Problem(conv)
    found = problem.contestants(which, threads, torch)
    for one in found.values():
        one.warm()
    peaks = []
    for _ in range(rounds):
        peaks.append(fma_rate(threads, 1))
        for one in found.values():
            one.turn()
    line: dict[str, Any] = {"shape": label(conv), "pass": which, "threads": threads, "algorithm": problem.algorithm(which)}
    line |= {name: conv.flops / median(one.seconds) / 1e9 for name, one in found.items()}
    line |= {"ms": median(found["kernel"].seconds) * 1e3, "peak": median(peaks)}
    if torch:
        expected = problem.oracle(which)
        largest = np.abs(expected).max()
        line["errors"] = {name: float(np.abs(one.result() - expected).max() / largest) for name, one in found.items()}
    return line


HEADER = ["shape", "pass", "threads", "times", "algorithm", "ms", "kernel", "whole", "torch", "share", "torch's", "error"]


def cells(line: dict[str, Any], times: int) -> list[str]:
    torch = line.get("torch")
    error = max(line["errors"]["kernel"], line["errors"]["whole"]) if "errors" in line else None
    return [
        line["shape"], line["pass"], str(line["threads"]), str(times), line["algorithm"], f"{line['ms']:.3f}",
        f"{line['kernel']:.0f}", f"{line['whole']:.0f}", f"{torch:.0f}" if torch else "-",
        f"{line['kernel'] / line['peak']:.0%}", f"{torch / line['peak']:.0%}" if torch else "-",
        f"{error:.0e}" if error is not None else "-",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["well-known"], help="networks of the zoo, or well-known")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="shapes whose name has all of these texts")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="of each network the N shapes with most work")
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--threads", default="1", help="numbers of threads, with commas")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true", help="quicker; then nothing is checked either")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    options = parser.parse_args()
    chosen = []
    for name in options.shapes:
        known = sorted(shapes(name, options.batch), key=lambda s: -s[0].flops * s[1])
        chosen += known[: options.most or None]
    chosen = [(c, n) for c, n in dict(chosen).items() if all(text in label(c) for text in options.only)]
    table = [HEADER]
    print("GFLOP/s of kernel, whole, torch; shares of the peak in the same rounds")
    print(_line(HEADER), flush=True)
    for threads in map(int, options.threads.split(",")):
        _use(threads, not options.no_torch)
        for conv, times in chosen:
            for which in options.passes:
                table.append(cells(measure(conv, which, threads, options.rounds, not options.no_torch), times))
                print(_line(table[-1]), flush=True)
    if options.markdown:
        rows = [table[0], ["---"] * len(HEADER), *table[1:]]
        options.markdown.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


def _use(threads: int, torch: bool) -> None:
    """Both libraries on the same cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(ALL_CORES)[:threads]))
    if torch:
        import torch as library

        library.set_num_threads(threads)


ALL_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
WIDTHS = [26, 8, 7, 5, 9, 8, 6, 5, 5, 5, 7, 6]


def _line(texts: list[str]) -> str:
    return " ".join(t.ljust(w) if k < 2 else t.rjust(w) for k, (t, w) in enumerate(zip(texts, WIDTHS)))


if __name__ == "__main__":
    main()
