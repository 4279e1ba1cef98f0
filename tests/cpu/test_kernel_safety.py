"""Kernels touch nothing outside their buffers (guard pages), and can be emitted for machines we do not have."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from kernel_oracles import HOST, run

from twofold.backends.cpu import jit
from twofold.backends.cpu.kernels import direct, gemm, pool, weights, wgrad, winograd, winograd_conv, winograd_wgrad
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.llvm.runtime import runtime_ir
from twofold.backends.cpu.machine import AVX2, AVX512, NEON, Machine

PAGE = mmap.PAGESIZE
PAD = ((1, 1), (1, 1))
EPILOGUE = (ep.Bias(), ep.Relu())


class Guarded:
    """A buffer that touches a page without access: at its end (``after``), or at its start."""

    def __init__(self, count: int, after: bool):
        size = -(-max(1, 4 * count) // PAGE) * PAGE
        self._map = mmap.mmap(-1, size + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (base, base + PAGE + size):
            assert libc.mprotect(ctypes.c_void_p(guard), PAGE, 0) == 0
        start = PAGE + size - 4 * count if after else PAGE
        self.array = np.frombuffer(self._map, np.float32, count, start)
        self.array[:] = 0.5

    def __del__(self):
        self.array = None


def kernels(machine: Machine):
    """Every kernel with shapes that leave tails everywhere: (kernel, sizes of its buffers)."""
    strided = Conv(2, 7, 9, 5, 13, 3, 3, (2, 2), PAD)
    grouped = Conv(1, 6, 5, 6, 9, 3, 2, (1, 2), ((1, 0), (0, 1)), (1, 2), 3)
    square = Conv(3, 7, 9, 5, 13, 3, 3, pad=PAD)
    point = Conv(1, 5, 7, 9, 21, 1, 1)
    slabs = Conv(1, 9, 7, 16, 24, 3, 3, (2, 1), ((1, 1), (1, 2)), groups=2)
    for conv in (strided, grouped, slabs, square, point):
        x, y = conv.n * conv.h * conv.w * conv.c, conv.n * conv.oh * conv.ow * conv.o
        fwd, back = direct.packing(machine, conv), direct.packing(machine, conv, forward=False)
        plain = weights.plain(conv)
        yield weights.repack(machine, plain, fwd), [plain.size, fwd.size]
        yield weights.repack(machine, fwd, back), [fwd.size, back.size]
        yield weights.repack(machine, back, plain), [back.size, plain.size]
        yield direct.forward(machine, conv, fwd, EPILOGUE), [x, fwd.size, y, conv.o]
        yield direct.data_gradient(machine, conv, back), [y, back.size, x]
        yield wgrad.weight_gradient(machine, conv, fwd), [x, y, fwd.size]
        if winograd.fits(conv):
            u, v = winograd.weights_size(fwd), winograd.weights_size(back)
            yield winograd.transform_weights(machine, fwd), [fwd.size, u]
            yield winograd.transform_weights(machine, back, True), [back.size, v]
            yield winograd_conv.forward(machine, conv, fwd, EPILOGUE), [x, u, y, conv.o]
            yield winograd_conv.data_gradient(machine, conv, back), [y, v, x]
            yield winograd_wgrad.weight_gradient(machine, conv, fwd), [x, y, fwd.size]
    for shape in (
        gemm.Matmul(7, 13, 5),
        gemm.Matmul(40, 9, 75),
        gemm.Matmul(3, 13, 11, transpose_b=True),
        gemm.Matmul(9, 7, 19, transpose_a=True, transpose_b=True),
    ):
        yield gemm.matmul(machine, shape, EPILOGUE), [shape.m * shape.k, shape.k * shape.n, shape.m * shape.n, shape.n]
    window = pool.Pool(2, 7, 9, 13, 4, 5, (3, 3), (2, 2), PAD)
    x, y = 2 * 7 * 9 * 13, 2 * 4 * 5 * 13
    for kind in ("max", "mean"):
        yield pool.forward(machine, window, kind), [x, y]
        yield pool.gradient(machine, window, kind), [x, y, x] if kind == "max" else [y, x]


@pytest.mark.skipif(not HOST.is_linux, reason="needs mprotect")
@pytest.mark.parametrize("after", [True, False], ids=["end", "start"])
def test_nothing_outside_the_buffers_is_touched(after):
    """A read or write one element too far would end this process."""
    for kernel, sizes in kernels(HOST):
        sizes = [*sizes, *([kernel.workspace // 4] if kernel.workspace else [])]
        buffers = [Guarded(size, after) for size in sizes]
        arrays = [buffer.array for buffer in buffers]
        if kernel.scratch:
            buffers.append(Guarded(kernel.scratch // 2, after))
            arrays.append(buffers[-1].array)
        bare = kernel.__class__(kernel.symbol, kernel.ir, kernel.params)
        run(bare, arrays, 2)


@pytest.mark.parametrize("machine", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
def test_kernels_are_emitted_for_other_machines(machine):
    """Objects come out (LLVM verifies the IR on the way), with the target's own vector multiply-adds."""
    for kernel, _ in kernels(machine):
        assert jit.compile_ir(kernel.ir, machine).startswith(b"\x7fELF")
    conv = Conv(1, 14, 14, 32, 64, 3, 3, pad=PAD)
    text = jit.assembly(direct.forward(machine, conv, direct.packing(machine, conv)).ir, machine)
    expected = {4: "fmla\tv", 8: "%ymm", 16: "%zmm"}[machine.lanes]
    lines = [line for line in text.splitlines() if ("vfmadd" in line or "fmla" in line)]
    assert lines and all(expected in line for line in lines)
    assert jit.compile_ir(runtime_ir(machine), machine).startswith(b"\x7fELF")


@pytest.mark.parametrize("machine", [AVX2, AVX512, NEON], ids=["avx2", "avx512", "neon"])
def test_the_inner_loop_does_not_spill(machine):
    """Accumulators, weights and the broadcast fit the registers: no vector is stored to the stack."""
    conv = Conv(1, 56, 56, 64, 64, 3, 3, pad=PAD)
    text = jit.assembly(direct.forward(machine, conv, direct.packing(machine, conv)).ir, machine)
    spills = [line for line in text.splitlines() if "Spill" in line and ("mm" in line or "str\tq" in line)]
    assert not spills
