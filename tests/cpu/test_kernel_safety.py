"""Kernels touch nothing outside their buffers (guard pages), and can be emitted for machines we do not have."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import test_few_rows
import test_outer
from fuzz_check import FAMILIES, arguments
from guarded import Guarded
from kernel_oracles import HOST, run
from kernel_paths import PATHS
from kernel_paths import conv as conv_graph

from twofold.backends.cpu import jit
from twofold.backends.cpu.backend import CpuProgram
from twofold.backends.cpu.emit.body import Body
from twofold.backends.cpu.kernels import (
    direct,
    fold,
    gemm,
    interleave,
    lanes,
    max_pool_grad,
    max_pool_tiles,
    planes,
    planes_wgrad,
    pool,
    repack,
    strassen,
    strassen_conv,
    weights,
    wgrad,
    winograd,
    winograd_conv,
    winograd_wgrad,
)
from twofold.backends.cpu.kernels import epilogue as ep
from twofold.backends.cpu.kernels.shapes import Conv
from twofold.backends.cpu.llvm.runtime import runtime_ir
from twofold.backends.cpu.loops import Buffer, Store, Var, constant, floordiv, in_range, load, var
from twofold.backends.cpu.machine import AVX2, AVX512, NEON, Machine
from twofold.backends.cpu.program import TEAM, KernelBuilder
from twofold.base.dtypes import float32
from twofold.base.errors import GraphError
from twofold.ir import Graph
from twofold.ir.text import parse_graph

PAD = ((1, 1), (1, 1))
EPILOGUE = (ep.Bias(), ep.Relu())


def kernels(machine: Machine):
    """Every kernel with shapes that leave tails everywhere: (kernel, sizes of its buffers)."""
    strided = Conv(2, 7, 9, 5, 13, 3, 3, (2, 2), PAD)
    grouped = Conv(1, 6, 5, 6, 9, 3, 2, (1, 2), ((1, 0), (0, 1)), (1, 2), 3)
    square = Conv(3, 7, 9, 5, 13, 3, 3, pad=PAD)
    larger = Conv(2, 7, 9, 5, 13, 5, 5, pad=((2, 2), (2, 1)))
    point = Conv(1, 5, 7, 9, 21, 1, 1)
    slabs = Conv(1, 9, 7, 16, 24, 3, 3, (2, 1), ((1, 1), (1, 2)), groups=2)
    for conv in (strided, grouped, slabs, square, larger, point):
        x, y = conv.n * conv.h * conv.w * conv.c, conv.n * conv.oh * conv.ow * conv.o
        fwd, back = direct.packing(machine, conv), direct.packing(machine, conv, forward=False)
        plain = weights.plain(conv)
        yield weights.repack(machine, plain, fwd), [plain.size, fwd.size]
        yield weights.repack(machine, fwd, back), [fwd.size, back.size]
        yield weights.repack(machine, back, plain), [back.size, plain.size]
        yield direct.forward(machine, conv, fwd, EPILOGUE), [x, fwd.size, y, conv.o]
        yield direct.data_gradient(machine, conv, back), [y, back.size, x]
        yield wgrad.weight_gradient(machine, conv, fwd), [x, y, fwd.size]
        for scheme in (s for s in (winograd.F4, winograd.F2, winograd.F2_5) if winograd.fits(conv, s)):
            u, v = winograd.weights_size(fwd, scheme), winograd.weights_size(back, scheme)
            yield winograd.transform_weights(machine, fwd, scheme=scheme), [fwd.size, u]
            yield winograd.transform_weights(machine, back, True, scheme), [back.size, v]
            yield winograd_conv.forward(machine, conv, fwd, EPILOGUE, scheme=scheme), [x, u, y, conv.o]
            yield winograd_conv.data_gradient(machine, conv, back, scheme=scheme), [y, v, x]
            if scheme is winograd.F4:
                yield winograd_conv.forward(machine, conv, fwd, EPILOGUE, inside=True), [x, fwd.size, y, conv.o]
                yield winograd_conv.data_gradient(machine, conv, back, inside=True), [y, back.size, x]
        if winograd.fits(conv, winograd.F4):
            yield winograd_wgrad.weight_gradient(machine, conv, fwd), [x, y, fwd.size]
    blocks = Conv(7, 13, 13, 5, 9, 3, 3, pad=PAD)
    x, y, fwd = 7 * 13 * 13 * 5, 7 * 13 * 13 * 9, direct.packing(machine, blocks)
    yield winograd_wgrad.weight_gradient(machine, blocks, fwd), [x, y, fwd.size]  # adds up sums
    yield winograd_wgrad.weight_gradient(replace(machine, l2=0), blocks, fwd), [x, y, fwd.size]  # adds up taps
    product = Conv(2, 3, 7, 8 * machine.lanes + 8, 12 * machine.lanes, 1, 1)
    fwd = direct.packing(machine, product)
    for levels in (one for one in (1, 2) if strassen.fits(fwd, one)):
        size, pixels = strassen.weights_size(fwd, levels), product.n * product.h * product.w
        yield strassen.transform_weights(machine, fwd, levels), [fwd.size, size]
        kernel = strassen_conv.forward(machine, product, fwd, levels, EPILOGUE)
        yield kernel, [pixels * product.c, size, pixels * product.o, product.o]
    for conv in (Conv(1, 6, 5, 32, 48, 3, 3), Conv(1, 5, 7, 64, 32, 1, 1, groups=2)):
        fwd, back = direct.packing(machine, conv), direct.packing(machine, conv, forward=False)
        size = weights.plain(conv).size
        yield repack.pack(machine, fwd), [size, size]
        yield repack.pack(machine, back), [size, size]
        yield repack.unpack(machine, fwd), [size, size]
    for many in (
        Conv(1, 5, 6, 24, 24, 3, 2, (1, 2), PAD, (1, 1), 6),
        Conv(2, 5, 6, 21, 21, 3, 3, pad=PAD, groups=21),
        Conv(1, 5, 25, 2 * machine.lanes, 2 * machine.lanes, 3, 3, pad=PAD, groups=2),
        Conv(2, 9, 25, 2 * machine.lanes, 2 * machine.lanes, 3, 3, pad=PAD, groups=machine.lanes // 2),
    ):
        x, y = many.n * many.h * many.w * many.c, many.n * many.oh * many.ow * many.o
        fwd, back = lanes.packing(machine, many), lanes.packing(machine, many, forward=False)
        yield weights.repack(machine, lanes.plain(machine, many), fwd), [lanes.plain(machine, many).size, fwd.size]
        yield lanes.forward(machine, many, fwd, EPILOGUE), [x, fwd.size, y, many.o]
        yield lanes.forward(replace(machine, l3=0), many, fwd), [x, fwd.size, y]  # fetches ahead
        yield lanes.forward(replace(machine, l2=36 << 10), many, fwd), [x, fwd.size, y]  # the next rows
        yield lanes.data_gradient(machine, many, back), [y, back.size, x]
        if lanes.shares(machine, many):
            yield lanes.weight_gradient(machine, many, fwd), [x, y, fwd.size]
            yield lanes.weight_gradient(replace(machine, l3=0), many, fwd), [x, y, fwd.size]
    for shape in (
        gemm.Matmul(3, 13, 21, 2, transpose_b=True),
        gemm.Matmul(40, 70, 33, transpose_a=True),
        gemm.Matmul(7, 13, 5),
        gemm.Matmul(40, 9, 75),
        gemm.Matmul(3, 13, 11, transpose_b=True),
        gemm.Matmul(9, 1201, 21, 2, transpose_b=True),
        gemm.Matmul(9, 7, 19, transpose_a=True, transpose_b=True),
    ):
        yield (
            gemm.matmul(machine, shape, EPILOGUE),
            [*(shape.batch * s for s in (shape.m * shape.k, shape.k * shape.n, shape.m * shape.n)), shape.n],
        )
    for module in (test_few_rows, test_outer):
        caches = {level: getattr(module.SMALL, level) for level in ("l1", "l2", "l3")}
        for shape in module.CASES:
            sizes = [shape.m * shape.k, shape.k * shape.n, shape.m * shape.n]
            yield gemm.matmul(replace(machine, **caches), shape), sizes
            yield gemm.matmul(replace(machine, **caches), shape, EPILOGUE), [*sizes, shape.n]
    tiles = pool.Pool(2, 6, 9, 13, 3, 3, (2, 3), (2, 3))
    yield max_pool_tiles.gradient(machine, tiles, (ep.Relu(),)), [2 * 54 * 13, 2 * 9 * 13, 2 * 54 * 13]
    windows = pool.Pool(2, 5, 9, 2 * machine.lanes + 5, 5, 9, (3, 3), (1, 1), PAD)
    yield max_pool_grad.gradient(machine, windows, (ep.Relu(),)), [2 * 45 * windows.c] * 3
    yield max_pool_grad.gradient(replace(machine, l3=0), replace(windows, c=4 * machine.lanes)), [8 * 45 * machine.lanes] * 3
    for channels in range(2, interleave.MOST + 1):
        yield interleave.channels_last(machine, 2, channels, machine.lanes + 5), [2 * channels * (machine.lanes + 5)] * 2
    plane = Conv(2, 8, machine.lanes + 7, 1, 5, 3, 3)
    x, y = plane.n * plane.h * plane.w, plane.n * plane.oh * plane.ow * plane.o
    yield planes.forward(machine, plane, EPILOGUE), [x, 45, y, 5]
    yield planes.forward(machine, plane, EPILOGUE, True), [x, 45, plane.n * 3 * (plane.ow // 2) * 5, 5]
    for plane in (Conv(2, 6, machine.lanes + 7, 1, 6, 3, 3, pad=((1, 1), (2, 0))), Conv(3, 5, machine.lanes, 1, 1, 2, 1)):
        x, y, packed = plane.n * plane.h * plane.w, plane.n * plane.oh * plane.ow * plane.o, direct.packing(machine, plane)
        yield planes_wgrad.weight_gradient(machine, plane, packed), [x, y, packed.size]
    few = Conv(2, 6, 5, 3, 7, 3, 5, pad=((1, 1), (2, 0)))
    x, y, packed = few.n * few.h * few.w * few.c, few.n * few.oh * few.ow * few.o, fold.packing(machine, few)
    yield weights.repack(machine, fold.Unfolded(weights.plain(few), few), packed), [weights.plain(few).size, packed.size]
    yield fold.data_gradient(machine, few), [y, packed.size, x]
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


CHANNELS = (1, 2, 3, 5, 7, 9, 15, 17, 31, 33)
TAILS = {f"{c} channels, {name}": conv_graph((1, c, 6, 5), (o, c // g, k, k), s, k // 2, groups=g)
         for c in CHANNELS for name, o, k, s, g in (("3x3", 11, 3, 1, 1), ("1x1", c + 1, 1, 1, 1), ("depthwise", c, 3, 2, c))}  # fmt: skip
GROUPS = {f"groups of {q}": conv_graph((1, 3 * q, 7, 6), (3 * (q + 1), q, 3, 3), 2, 1, groups=3) for q in CHANNELS}


def _as(dtype: str) -> dict[str, str]:
    """The paths in a 16-bit dtype."""
    return {f"{name}, {dtype}": text.replace("f32", dtype) for name, (text, _) in PATHS.items()}


PROGRAMS = {name: text for name, (text, _) in PATHS.items()} | TAILS | GROUPS | _as("f16") | _as("bf16")


def _guarded(graph: Graph, seed: int, after: bool) -> None:
    """Inputs that may not be written, outputs, all beside pages that may not be touched: the same results as elsewhere."""
    program, given = CpuProgram(graph), arguments(graph, seed)
    expected = program([a.copy() for a in given])
    inputs = [Guarded(a.shape, after, a.dtype) for a in given]
    for buffer, a in zip(inputs, given):
        buffer.array[...] = a
        buffer.freeze()
    execution = program._execution
    arrays = execution.bind([b.array for b in inputs])
    first, outputs = len(given), []
    for i, (slot, _) in enumerate(execution._fresh, first):
        outputs.append(Guarded(arrays[i].shape, after, arrays[i].dtype))
        arrays[i] = outputs[-1].array
        execution._table[slot] = outputs[-1].array.ctypes.data
    for segment in execution.built.segments:
        segment.crew = TEAM
    execution._run(execution.built.segments, arrays)
    for result, want in zip(execution._results, expected, strict=True):
        assert result.of(arrays[result.at]).tobytes() == want.tobytes()


@pytest.mark.skipif(not HOST.is_linux, reason="needs mprotect")
@pytest.mark.parametrize("after", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_keep_to_their_inputs_and_outputs(name, after):
    _guarded(parse_graph(PROGRAMS[name]), 0, after)


@pytest.mark.skipif(not HOST.is_linux, reason="needs mprotect")
@pytest.mark.parametrize("family", FAMILIES)
def test_random_programs_keep_to_their_inputs_and_outputs(family):
    for seed in range(600, 608):
        _guarded(FAMILIES[family].graph(seed), seed, bool(seed % 2))


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


@pytest.mark.parametrize("machine", [AVX2, AVX512, replace(AVX512, cpu="znver5")], ids=["avx2", "avx512", "znver5"])
@pytest.mark.parametrize("kernel", [3, 7, 11])
def test_the_inner_loop_does_not_spill(machine, kernel):
    """Accumulators, weights and the broadcast fit the registers, also where ReLU compares with zero: LLVM took that out of the
    loops, and kept accumulators in the stack instead (225 and 400 stores of a vector for 7x7 and 11x11)."""
    conv = Conv(1, 224, 224, 3, 64, kernel, kernel, (kernel // 3, kernel // 3), PAD)
    text = jit.assembly(direct.forward(machine, conv, direct.packing(machine, conv), (ep.Bias(), ep.Relu())).ir, machine)
    stores = re.findall(r"\tvmovup?a?[sd]\s+%[yz]mm\d+, -?\d*\(%rsp\)", text)
    assert re.search(r"\tvfmadd", text) and len(stores) <= 4


@pytest.mark.parametrize("machine", [AVX2, AVX512, replace(AVX512, cpu="znver5")], ids=["avx2", "avx512", "znver5"])
@pytest.mark.parametrize("inputs", [64, 512])
def test_the_inner_loop_does_not_spill_where_statistics_are_gathered(machine, inputs):
    """They take registers after the loop, for which LLVM kept 14 of 28 accumulators in the stack in it; two or three are left."""
    conv = Conv(8, 28, 28, inputs, 128, 1, 1)
    text = jit.assembly(direct.forward(machine, conv, direct.packing(machine, conv), (ep.Statistics(128),)).ir, machine)
    loops = [m[2] for m in re.finditer(r"^(\.LBB\w+):((?:(?!^\.LBB).)*?)\tj\w+\t\1$", text, re.DOTALL | re.MULTILINE)]
    inner = [loop for loop in loops if loop.count("\tvfmadd") >= 8 * machine.accumulators(2) // 4]
    assert inner and all(len(re.findall(r"\tvmov[a-z]*\s+%[yz]mm\d+, -?\d*\(%rsp\)", loop)) <= 3 for loop in inner)


def _stored(address, value, guard=None):
    """The instructions of one store within a vector loop over ``lane``."""
    k = KernelBuilder(HOST, "stored", ["p0", "p1"])
    body = Body(k.f, {TARGET: k.f.arg("p0"), SOURCE: k.f.arg("p1")}, {TARGET}, HOST.lanes, None)
    body.values[LANE] = 0
    with body.vectorised(LANE, None):
        body.store_all([Store(TARGET, address, value, guard)])
    return k.finish().ir


LANE, TARGET, SOURCE = Var(64, "lane"), Buffer(float32, 128, "target"), Buffer(float32, 64, "source")
ACROSS = load(SOURCE, var(LANE))


@pytest.mark.parametrize(
    ("address", "value", "guard"),
    [
        (constant(5), ACROSS, None),  # one element for a whole vector of values
        (constant(5), load(SOURCE, constant(0)), in_range(var(LANE), 3, 9)),  # under a condition of each lane
        (var(LANE) * 2, ACROSS, None),  # elements apart
        (floordiv(var(LANE), 2), ACROSS, None),
    ],
)
def test_a_vector_is_stored_only_where_its_lanes_lie_side_by_side(address, value, guard):
    with pytest.raises(GraphError, match=r"stores a vector in target:f32\[128\] at .*, (that is the same for|whose lanes do)"):
        _stored(address, value, guard)


def test_what_may_be_stored_within_a_vector_loop():
    lanes = f"store <{HOST.lanes} x float>"
    assert _stored(var(LANE) + 3, ACROSS).count(lanes) == 1
    assert _stored(var(LANE), load(SOURCE, constant(0))).count(lanes) == 1
    assert lanes not in _stored(constant(5), load(SOURCE, constant(0)))
