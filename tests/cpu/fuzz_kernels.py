"""Random convolutions, large enough for several blocks, chunks and parts: the kernels that are chosen for them, alone, against
float64 NumPy, and to the bit for one thread and for several."""

from __future__ import annotations

import numpy as np
from kernel_oracles import HOST, data_gradient, error, forward, normal, run, unset, weight_gradient

from twofold.backends.cpu.kernels import choose, weights, winograd, winograd_wgrad
from twofold.backends.cpu.kernels.direct import packing
from twofold.backends.cpu.kernels.shapes import Conv

MOST = 3e8  # operations
SIZES, CHANNELS, BATCHES = (5, 40), (1, 3, 16, 24, 32, 40, 64, 96, 100, 128, 160, 256), (1, 2, 3, 5, 8)
THREADS = (1, 2, 3)
BOUNDS = {"winograd": 5e-5}  # of the largest value
BOUND = 1e-5  # others'; of 4,700 products 4e-6 were seen


def convolution(seed: int) -> Conv:
    """One of at most ``MOST`` operations."""
    rng = np.random.default_rng(seed)
    while True:
        kernel = int(rng.choice([1, 3, 3, 3, 5, 7]))
        n, c, o = (int(rng.choice(of)) for of in (BATCHES, CHANNELS, CHANNELS))
        h, w = (int(rng.integers(*SIZES)) for _ in range(2))
        stride = (2, 2) if rng.random() < 0.25 else (1, 1)
        pads = rng.integers(0, kernel, (2, 2)).tolist() if rng.random() < 0.3 else [[kernel // 2] * 2] * 2
        pad = tuple(map(tuple, pads))
        groups = int(rng.choice([1, 1, 1, 4, 8])) if c == o and c % 8 == 0 else 1
        if min(h, w) >= kernel and (conv := Conv(n, h, w, c, o, kernel, kernel, stride, pad, groups=groups)).flops < MOST:
            return conv


def check_kernels(seed: int) -> None:
    """Raise if a kernel is wrong."""
    conv = convolution(seed)
    x, dy = normal((conv.n, conv.h, conv.w, conv.c), seed), normal((conv.n, conv.oh, conv.ow, conv.o), seed + 1)
    w = normal((conv.o, conv.cg, conv.kh, conv.kw), seed + 2)
    constant = bool(seed % 2)
    for choice, given, expected in (
        (choose.forward(HOST, conv, constant=constant), x, forward(conv, x, w)),
        (choose.data_gradient(HOST, conv, constant=constant), dy, data_gradient(conv, dy, w)),
    ):
        source = _prepared(choice, w)
        _compare(choice.algorithm, conv, expected, lambda out, t, c=choice, g=given, s=source: run(c.kernel, [g, s, out], t))
    expected = weight_gradient(conv, x, dy)
    choice = choose.weight_gradient(HOST, conv)
    found = [("weights: " + choice.algorithm, choice.kernel, choice.weights, choose.plain_weights(HOST, conv))]
    if winograd.fits(conv, winograd.F4):
        packed = packing(HOST, conv)
        kernel = winograd_wgrad.weight_gradient(HOST, conv, packed)
        found.append(("weights: winograd", kernel, packed, weights.plain(conv)))
    for name, kernel, packed, plain in found:

        def gradient(out: np.ndarray, threads: int, kernel=kernel, packed=packed, plain=plain) -> None:
            dw = unset(packed.size)
            run(kernel, [x, dy, dw], threads)
            run(weights.repack(HOST, packed, plain), [dw, out], 1)

        _compare(name, conv, expected, gradient)


def _prepared(choice: choose.Choice, w: np.ndarray) -> np.ndarray:
    for step in choice.prepare:
        target = unset(step.size)
        run(step.kernel, [w, target], 1)
        w = target
    return w


def _compare(name: str, conv: Conv, expected: np.ndarray, compute) -> None:
    results = []
    for threads in THREADS:
        results.append(unset(expected.shape))
        compute(results[-1], threads)
    wrong, bound = error(results[0], expected), BOUNDS.get(name.rsplit(" ")[-1], BOUND)
    assert wrong < bound, f"{name}, {conv}: off by {wrong:.1e}"
    for threads, result in zip(THREADS[1:], results[1:]):
        assert np.array_equal(results[0], result), f"{name}, {conv}: {threads} threads give other bits than one"
