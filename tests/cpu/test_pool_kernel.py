"""Pooling kernels against NumPy: tails, edges, ceil mode, ties, NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_oracles import HOST, error, moments, normal, run, unset

from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels import max_pool, max_pool_grad, max_pool_tiles
from twofold.backends.cpu.kernels import pool as kernels
from twofold.backends.cpu.kernels.pool import Pool
from twofold.backends.cpu.llvm import const

ONE = ((1, 1), (1, 1))
CASES = [
    Pool(2, 8, 8, 16, 4, 4, (2, 2), (2, 2)),
    Pool(2, 13, 13, 7, 6, 6, (3, 3), (2, 2)),
    Pool(1, 9, 11, 37, 5, 6, (3, 3), (2, 2), ONE),
    Pool(3, 7, 7, 19, 7, 7, (3, 3), (1, 1), ONE, include_pad=True),
    Pool(2, 14, 14, 9, 7, 7, (3, 3), (2, 2)),  # ceil mode: the last window hangs over
    Pool(1, 7, 12, 40, 1, 1, (7, 12), (7, 12)),  # the whole image, too wide to write out
    Pool(2, 30, 9, 65, 15, 5, (3, 3), (2, 2), ONE),  # several bands
    Pool(1, 11, 10, 5, 3, 3, (2, 2), (4, 4)),  # pixels that no window covers
    Pool(1, 10, 8, 3, 4, 3, (2, 3), (3, 2), ((0, 0), (1, 0)), include_pad=True),
]


def _windows(pool: Pool):
    for i in range(pool.oh):
        for j in range(pool.ow):
            top, left = i * pool.stride[0] - pool.pad[0][0], j * pool.stride[1] - pool.pad[1][0]
            bottom, right = top + pool.window[0], left + pool.window[1]
            rows, columns = slice(max(top, 0), min(bottom, pool.h)), slice(max(left, 0), min(right, pool.w))
            if pool.include_pad:
                size = (min(bottom, pool.h + pool.pad[0][1]) - top) * (min(right, pool.w + pool.pad[1][1]) - left)
            else:
                size = (rows.stop - rows.start) * (columns.stop - columns.start)
            yield i, j, rows, columns, size


def _forward(pool: Pool, x, kind):
    y = np.zeros((pool.n, pool.oh, pool.ow, pool.c))
    for i, j, rows, columns, size in _windows(pool):
        view = x[:, rows, columns].astype(np.float64)
        y[:, i, j] = view.max((1, 2)) if kind == "max" else view.sum((1, 2)) / size
    return y


def _gradient(pool: Pool, x, g, kind):
    dx = np.zeros(x.shape)
    for i, j, rows, columns, size in _windows(pool):
        view, into = x[:, rows, columns], dx[:, rows, columns]
        if kind == "mean":
            into += (g[:, i, j] / size)[:, None, None]
            continue
        flat = np.where(np.isnan(view), np.inf, view).reshape(pool.n, -1, pool.c)
        winner = flat.argmax(1)
        for image, channel in np.ndindex(pool.n, pool.c):
            a, b = divmod(int(winner[image, channel]), view.shape[2])
            into[image, a, b, channel] += g[image, i, j, channel]
    return dx


@pytest.mark.parametrize("kind", ["max", "mean"])
@pytest.mark.parametrize("pool", CASES, ids=str)
def test_pool_forward_and_gradient(pool, kind):
    x = np.round(normal((pool.n, pool.h, pool.w, pool.c)) * 2) / 2  # with ties
    g = normal((pool.n, pool.oh, pool.ow, pool.c), 1)
    results = []
    for threads in (1, 3):
        y, dx = unset(g.shape), unset(x.shape)
        run(kernels.forward(HOST, pool, kind), [x, y], threads)
        run(kernels.gradient(HOST, pool, kind), [x, g, dx] if kind == "max" else [g, dx], threads)
        results.append((y, dx))
    assert error(results[0][0], _forward(pool, x, kind)) < 1e-6
    assert error(results[0][1], _gradient(pool, x, g, kind)) < 1e-6
    assert all(np.array_equal(a, b) for a, b in zip(*results))


TILES = [
    Pool(2, 8, 8, 16, 4, 4, (2, 2), (2, 2)),
    Pool(3, 28, 28, 6, 14, 14, (2, 2), (2, 2)),
    Pool(1, 9, 6, 37, 3, 3, (3, 2), (3, 2)),
    Pool(20, 3, 5, 70, 3, 1, (1, 5), (1, 5)),
    Pool(1, 6, 6, 5, 2, 2, (3, 3), (3, 3)),
]


WIDE = 2 * HOST.lanes
WINDOWS = [
    Pool(2, 13, 13, 3 * HOST.lanes, 6, 6, (3, 3), (2, 2)),
    Pool(3, 7, 9, WIDE + 5, 7, 9, (3, 3), (1, 1), ONE),
    Pool(1, 30, 9, 2 * WIDE, 15, 5, (3, 3), (2, 2), ONE),
    Pool(2, 14, 15, WIDE + 1, 7, 7, (3, 3), (2, 2)),  # ceil mode: the last window hangs over
    Pool(1, 11, 10, 2 * WIDE, 3, 3, (2, 2), (4, 4)),  # pixels that no window covers
    Pool(17, 6, 5, WIDE + 1, 3, 2, (2, 5), (2, 1), ((0, 0), (1, 0))),
    Pool(1, 4, 5, WIDE + 3, 4, 5, (5, 5), (1, 1), ((2, 2), (2, 2))),
    Pool(1, 1, 1, 2 * WIDE, 1, 1, (3, 3), (2, 2), ONE),
]


@pytest.mark.parametrize(("kernel", "pool"), [*((max_pool_tiles, p) for p in TILES), *((max_pool_grad, p) for p in WINDOWS)])
def test_gradient_with_an_epilogue(kernel, pool):
    """With what follows it in registers: ReLU's mask, and a sum for each channel."""
    assert kernel.fits(pool) if kernel is max_pool_tiles else kernel.pays(HOST, pool)
    x = np.maximum(np.round(normal((pool.n, pool.h, pool.w, pool.c)) * 2) / 2, 0.0)  # with ties
    x[0, 0, 0] = x[-1, -1, -1] = x[0, 0, -1, 3] = np.nan
    g = normal((pool.n, pool.oh, pool.ow, pool.c), 1)
    mask = ep.Map("mask", lambda f, v, site: f.select(f.fcmp("ugt", _at(f, pool, site), 0.0), v, f.splat(const("float", 0.0))))
    results = []
    for threads, machine in ((1, HOST), (3, HOST), (2, replace(HOST, l3=0))):  # the last: past the caches
        dx, masked = unset(x.shape), unset(x.shape)
        stats = unset((kernel.parts(pool), 4, pool.c))
        run(kernel.gradient(machine, pool), [x, g, dx], threads)
        run(kernel.gradient(machine, pool, (mask, ep.Statistics(pool.c))), [x, g, masked, stats], threads)
        results.append((dx, masked, stats))
    assert all(a.tobytes() == b.tobytes() for other in results[1:] for a, b in zip(results[0], other))
    dx, masked, stats = results[0]
    assert error(dx, _gradient(pool, x, g, "max")) < 1e-6
    np.testing.assert_array_equal(masked, np.where(x <= 0, 0.0, dx))
    mean = masked.astype(np.float64).mean((0, 1, 2))
    assert np.abs(moments(stats)[0] - mean).max() < 1e-6 * np.abs(masked).max()  # float32 sums of numbers that cancel


def _at(f, pool, site):
    return f.vload(f.gep(f.arg("x"), f.add(f.mul(site.pixel, pool.c), site.channel)), site.count)


def test_windows_outside_the_image_are_scattered():
    assert not max_pool_grad.pays(HOST, Pool(1, 4, 5, 2 * WIDE, 8, 9, (1, 1), (1, 1), ((2, 2), (2, 2))))


def test_windows_that_do_not_tile_the_image():
    for pool in CASES[1:]:
        assert not max_pool_tiles.fits(pool)


def test_max_pool_keeps_nan_and_sends_its_gradient_there():
    pool = Pool(1, 4, 4, 8, 2, 2, (2, 2), (2, 2))
    x = np.ones((1, 4, 4, 8), np.float32)
    x[0, 1, 0, 3] = np.nan
    y, dx, g = unset((1, 2, 2, 8)), unset(x.shape), np.ones((1, 2, 2, 8), np.float32)
    run(kernels.forward(HOST, pool, "max"), [x, y])
    run(kernels.gradient(HOST, pool, "max"), [x, g, dx])
    assert np.isnan(y[0, 0, 0, 3]) and np.isnan(y).sum() == 1
    assert dx[0, 1, 0, 3] == 1 and dx[0, 0, 0, 3] == 0 and dx[0, 0, 0, 2] == 1 and dx.sum() == 32


@pytest.mark.parametrize("pool", [*CASES, *WINDOWS], ids=str)
def test_nan_is_the_maximum_of_its_windows(pool):
    x = normal((pool.n, pool.h, pool.w, pool.c))
    x.reshape(-1)[::23] = np.nan
    y = unset((pool.n, pool.oh, pool.ow, pool.c))
    run(kernels.forward(HOST, pool, "max"), [x, y])
    assert np.array_equal(y, _forward(pool, x, "max"), equal_nan=True)


def test_windows_that_miss_the_image_have_a_kernel_of_their_own():
    """Of two rows, taps -3, 0, 3 meet one; -1, 2, 5 none: there is no pixel to take the place of theirs."""
    pool = Pool(1, 2, 5, 8, 2, 3, (3, 3), (2, 1), ((3, 3), (0, 0)), (3, 1))
    assert not max_pool.fits(pool) and max_pool.fits(replace(pool, oh=1))
    x, y = normal((1, 2, 5, 8)), unset((1, 2, 3, 8))
    run(kernels.forward(HOST, pool, "max"), [x, y])
    assert np.array_equal(y[0, 0], np.max([x[0, 0, at : at + 3] for at in range(3)], 0)) and (y[0, 1] == -np.inf).all()


@pytest.mark.parametrize("dilation", [(2, 1), (1, 2)])
def test_dilated_windows(dilation):
    pool = Pool(2, 9, 11, 21, 5, 5, (3, 3), (1, 2), ((0, 0), (0, 0)), dilation)
    oh, ow = (size - 2 * d for size, d in zip((9, 11), dilation))
    pool = replace(pool, oh=oh, ow=-(-ow // 2))
    x, y = normal((pool.n, pool.h, pool.w, pool.c)), unset((pool.n, pool.oh, pool.ow, pool.c))
    run(kernels.forward(HOST, pool, "max"), [x, y])
    lines, columns = (range(0, 3 * d, d) for d in dilation)
    taps = [x[:, a : a + oh, b : b + 2 * pool.ow - 1 : 2] for a in lines for b in columns]
    assert np.array_equal(y, np.max(taps, 0))


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_slices_of_wider_buffers(kind):
    pool = CASES[2]
    x, g = normal((pool.n, pool.h, pool.w, pool.c)), normal((pool.n, pool.oh, pool.ow, pool.c), 1)
    wide = [np.full((*a.shape[:-1], pool.c + 5), 7, np.float32) for a in (x, g, g, x)]
    into, given, y, dx = (a[..., 2 : 2 + pool.c] for a in wide)
    into[...], given[...] = x, g
    ld = pool.c + 5
    run(kernels.forward(HOST, pool, kind, ldx=ld, ldy=ld), [into, y])
    arrays = [into, given, dx] if kind == "max" else [given, dx]
    run(kernels.gradient(HOST, pool, kind, ld, ld, ld), arrays)
    assert error(y, _forward(pool, x, kind)) < 1e-6 and error(dx, _gradient(pool, x, g, kind)) < 1e-6
    assert all((a[..., :2] == 7).all() and (a[..., 2 + pool.c :] == 7).all() for a in wide)
