"""Running single kernels on NumPy arrays, and what they must give: plain float64 NumPy, channels-last."""

from __future__ import annotations

import time

import numpy as np

from twofold.backends.cpu.kernels import weights
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.machine import host
from twofold.backends.cpu.program import ProgramBuilder, Ref

HOST = host()


def run(kernel, arrays, threads=2, repeat=0):
    """Run a kernel on arrays (workspace and scratch are added, full of NaN); the best time if ``repeat``."""
    arrays = list(arrays)
    for size in (kernel.workspace, kernel.scratch * threads):
        if size:
            arrays.append(aligned(size // 4))
    builder = ProgramBuilder(HOST)
    builder.call(kernel, [Ref(slot) for slot in range(len(arrays))])
    program, pointers = builder.finish(), [array.ctypes.data for array in arrays]
    program.run(pointers, threads)
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        program.run(pointers, threads)
        best = min(best, time.perf_counter() - start)
    return best


def aligned(count):
    raw = np.full(count + 16, np.nan, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + count]


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def unset(shape):
    """NaN everywhere, aligned to 64 bytes."""
    return aligned(int(np.prod(shape))).reshape(shape)


def error(result, expected):
    """Largest difference over the largest value; NaN anywhere is infinite."""
    if np.isnan(result).any():
        return float("inf")
    return float(np.abs(result - expected).max(initial=0) / max(1e-30, np.abs(expected).max(initial=0)))


def pack(conv: Conv, plain, packed, threads=2):
    out = unset(packed.size)
    run(weights.repack(HOST, weights.plain(conv), packed), [plain, out], threads)
    return out


def unpack(conv: Conv, data, packed, threads=2):
    out = unset((conv.o, conv.cg, conv.kh, conv.kw))
    run(weights.repack(HOST, packed, weights.plain(conv)), [data, out], threads)
    return out


def _taps(conv: Conv):
    """For every group and tap: its channels, and the view of a padded image that meets the outputs."""
    for group in range(conv.groups):
        into, out = slice(group * conv.cg, (group + 1) * conv.cg), slice(group * conv.og, (group + 1) * conv.og)
        for a in range(conv.kh):
            for b in range(conv.kw):
                top, left = a * conv.dilation[0], b * conv.dilation[1]
                rows = slice(top, top + (conv.oh - 1) * conv.stride[0] + 1, conv.stride[0])
                columns = slice(left, left + (conv.ow - 1) * conv.stride[1] + 1, conv.stride[1])
                yield (slice(None), rows, columns, into), out, a, b


def padded(conv: Conv, x):
    return np.pad(x.astype(np.float64), ((0, 0), *conv.pad, (0, 0)))


def forward(conv: Conv, x, w):
    x, y = padded(conv, x), np.zeros((conv.n, conv.oh, conv.ow, conv.o))
    for view, out, a, b in _taps(conv):
        y[..., out] += x[view] @ w[out, :, a, b].T.astype(np.float64)
    return y


def data_gradient(conv: Conv, dy, w):
    dx = np.zeros((conv.n, conv.h + sum(conv.pad[0]), conv.w + sum(conv.pad[1]), conv.c))
    for view, out, a, b in _taps(conv):
        dx[view] += dy[..., out].astype(np.float64) @ w[out, :, a, b].astype(np.float64)
    (top, _), (left, _) = conv.pad
    return dx[:, top : top + conv.h, left : left + conv.w]


def weight_gradient(conv: Conv, x, dy):
    x, dw = padded(conv, x), np.zeros((conv.o, conv.cg, conv.kh, conv.kw))
    for view, out, a, b in _taps(conv):
        dw[out, :, a, b] += np.tensordot(dy[..., out].astype(np.float64), x[view], ((0, 1, 2), (0, 1, 2)))
    return dw


def moments(stats):
    """Mean and variance per channel from the parts of ``epilogue.Statistics``."""
    count, shift, total, squares = stats.astype(np.float64).transpose(1, 0, 2)
    n = count.sum(0)
    mean = (count * shift + total).sum(0) / n
    apart = shift - mean
    return mean, (squares + 2 * apart * total + count * apart**2).sum(0) / n
