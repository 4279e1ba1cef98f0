"""Graphs that lead to every kernel there is: what tests of all kernels run over."""

from __future__ import annotations

from twofold.backends.cpu.machine import host

Ints = tuple[int, ...]


def _f32(shape: Ints) -> str:
    return f"f32[{','.join(map(str, shape))}]"


def conv(x: Ints, w: Ints, stride: int = 1, pad: int = 0, dilation: int = 1, groups: int = 1) -> str:
    """A convolution and both its gradients."""
    places = tuple((s + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(x[2:], w[2:]))
    y = (x[0], w[0], *places)
    attrs = f"strides={(stride,) * 2}, padding={((pad,) * 2,) * 2}, dilation={(dilation,) * 2}, groups={groups}"
    return f"""graph f(%x: {_f32(x)}, %w: {_f32(w)}, %g: {_f32(y)}) {{
  %0 = conv(%x, %w) {{{attrs}}} : {_f32(y)}
  %1 = conv_input_grad(%g, %w) {{input_shape={x[2:]}, {attrs}}} : {_f32(x)}
  %2 = conv_weight_grad(%x, %g) {{kernel={w[2:]}, {attrs}}} : {_f32(w)}
  return %0, %1, %2
}}"""


def matmul(a: Ints, b: Ints, turned: str = "") -> str:
    """A product; the operands named in ``turned`` are stored transposed."""
    lines, names = [], []
    for name, shape in (("a", a), ("b", b)):
        stored = (*shape[:-2], shape[-1], shape[-2]) if name in turned else shape
        names.append(f"%{name}: {_f32(stored)}")
        if name in turned:
            lines.append(f"  %t{name} = permute_dims(%{name}) {{axes=(1, 0)}} : {_f32(shape)}")
    operands = ", ".join(f"%t{n}" if n in turned else f"%{n}" for n in "ab")
    product = f"  %c = matmul({operands}) : {_f32((*a[:-1], b[-1]))}"
    return "\n".join([f"graph f({', '.join(names)}) {{", *lines, product, "  return %c", "}"])


def _window(name: str, window: str, attrs: str, y: str) -> str:
    """Pooling and its gradient."""
    attrs = f"window={window}, {attrs}, ceil_mode=false"
    if name == "max":
        attrs += ", dilation=(1, 1)"
        back = f"max_pool_grad(%x, %g) {{{attrs}}}"
    else:
        attrs += ", include_pad=false"
        back = f"avg_pool_grad(%g) {{input_shape=(14, 15), {attrs}}}"
    return f"""graph f(%x: f32[3,37,14,15], %g: f32[{y}]) {{
  %0 = {name}_pool(%x) {{{attrs}}} : f32[{y}]
  %1 = {back} : f32[3,37,14,15]
  return %0, %1
}}"""


def _reduction(name: str, axes: str, shape: str) -> str:
    return f"""graph f(%x: f32[13,37,9,11]) {{
  %0 = {name}(%x) {{axes={axes}, keepdims=false}} : f32[{shape}]
  return %0
}}"""


WIDE = host().lanes  # channels that fill a vector
STRASSEN = "strassen strassen_dx conv_dw" if (WIDE, host().fma_rate) == (16, 1) else ""  # others may not gain by it here
FOLD = "conv_fold_dx" if WIDE == 16 else "conv_dx"  # narrow vectors of inputs leave few lanes empty
CONV, LANES = "conv conv_dx conv_dw", "conv_lanes conv_lanes_dx conv_lanes_dw"

# name: (graph, the kernels it must call)
PATHS = {
    "direct": (conv((2, 20, 15, 17), (33, 20, 3, 3), 2, 1), CONV),
    "pointwise": (conv((3, 40, 9, 9), (70, 40, 1, 1)), CONV),
    "pointwise, few places": (conv((1, 256, 7, 7), (64, 256, 1, 1)), CONV),
    "strassen": (conv((8, 512, 14, 14), (512, 512, 1, 1)), STRASSEN),
    "dilated": (conv((2, 8, 13, 13), (24, 8, 3, 3), pad=1, dilation=2), CONV),
    "stem": (conv((2, 3, 33, 31), (16, 3, 7, 7), 2, 3), CONV),
    "few outputs": (conv((2, 5, 19, 15), (6, 5, 5, 5), pad=2), CONV),
    "planes of few channels": (conv((2, 3, 9, 11), (16, 3, 3, 3)), f"channels_last conv {FOLD} conv_dw"),
    "one channel": (
        conv((2, 1, 19, WIDE + 5), (6, 1, 5, 4)), "conv_planes conv_fold_dx conv_planes_dw" if WIDE == 16 else ""
    ),
    "few inputs": (conv((2, 3, 9, 11), (13, 3, 5, 5), pad=1), f"conv {FOLD} conv_dw"),
    "one channel, few taps": (conv((2, 1, 19, WIDE + 5), (6, 1, 3, 2), pad=1), "conv conv_dx conv_planes_dw"),
    "one channel, pooled": (
        f"graph f(%x: f32[3,1,12,{2 * WIDE + 8}], %w: f32[6,1,3,3]) {{\n"
        "  %0 = conv(%x, %w) {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1} : "
        f"f32[3,6,10,{2 * WIDE + 6}]\n  %1 = relu(%0) : f32[3,6,10,{2 * WIDE + 6}]\n"
        "  %2 = max_pool(%1) {window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=false} : "
        f"f32[3,6,5,{WIDE + 3}]\n  return %2\n}}",
        "conv_planes",
    ),
    "winograd": (conv((4, 64, 28, 28), (64, 64, 3, 3), pad=1), "winograd winograd_dx winograd_dw"),
    "winograd, staged": (conv((2, 128, 14, 14), (128, 128, 3, 3), pad=1), "winograd winograd_dx winograd_dw"),
    "slabs": (conv((2, 48, 14, 14), (36, 12, 3, 3), pad=1, groups=4), CONV),
    "groups": (conv((2, 36, 11, 9), (60, 12, 3, 3), 2, 1, groups=3), CONV),
    "groups of whole lines": (conv((2, 64, 7, 7), (64, 32, 3, 3), pad=1, groups=2), CONV),
    "lanes": (conv((2, 64, 14, 14), (64, 4, 3, 3), pad=1, groups=16), LANES),
    "lanes, a group each": (
        conv((2, 4 * WIDE, 14, 14), (4 * WIDE, WIDE, 3, 3), pad=1, groups=4), "conv_lanes conv_lanes_dx conv_dw"
    ),
    "depthwise": (conv((3, 40, 15, 15), (40, 1, 3, 3), 2, 1, groups=40), LANES),
    "product": (matmul((65, 130), (130, 75)), "matmul"),
    "product, a turned": (matmul((53, 300), (300, 75), "a"), "matmul"),
    "product, b turned": (matmul((65, 130), (130, 75), "b"), "matmul"),
    "product, both turned": (matmul((65, 130), (130, 75), "ab"), "matmul"),
    "skinny product": (matmul((3, 700), (700, 1030)), "matmul_rows"),
    "thin product": (matmul((20, 700), (700, 1030)), "matmul"),
    "dot products": (matmul((4, 900), (900, 210), "b"), "matmul_dots"),
    "outer product": (matmul((host().l2 // 900, 6), (6, 500), "a"), "matmul_outer"),  # beyond L2
    "long sums": (matmul((40, 9000), (9000, 40)), "matmul"),
    "batched product": (matmul((7, 33, 20), (7, 20, 41)), "matmul"),
    "max pool": (
        _window("max", "(3, 3)", "strides=(2, 2), padding=((1, 1), (1, 1))", "3,37,7,8"),
        "max_pool max_pool_dx",
    ),
    "max pool, tiles": (
        _window("max", "(2, 3)", "strides=(2, 3), padding=((0, 0), (0, 0))", "3,37,7,5"),
        "max_pool max_pool_dx",
    ),
    "mean pool": (
        _window("avg", "(3, 3)", "strides=(1, 1), padding=((1, 1), (1, 1))", "3,37,14,15"),
        "mean_pool mean_pool_dx",
    ),
    "sum of all": (_reduction("sum", "(0, 1, 2, 3)", ""), ""),
    "sum of rows": (_reduction("sum", "(1, 2, 3)", "13"), ""),
    "sum of columns": (_reduction("sum", "(0, 2, 3)", "37"), ""),
    "sum of middles": (_reduction("sum", "(1, 3)", "13,9"), ""),
    "largest": (_reduction("max", "(0, 1)", "9,11"), ""),
    "product of all": (_reduction("prod", "(0, 1, 2, 3)", ""), ""),
    "running sum": (
        "graph f(%x: f32[13,500]) {\n  %0 = cumulative_sum(%x) {axis=1} : f32[13,500]\n  return %0\n}",
        "",
    ),
    "half floats, one left of a vector": (
        "graph f(%x: f32[42,33], %b: f32[33]) {\n  %0 = add(%x, %b) : f32[42,33]\n"
        "  %1 = cast(%0) {dtype=bf16} : bf16[42,33]\n  return %1\n}",
        "",
    ),
    "random bits": (
        "graph f(%s: u32[4]) {\n  %0 = random_bits(%s) {shape=(77, 33)} : u32[77,33]\n  %1 = rng_next(%s) : u32[4]\n  return %0, %1\n}",
        "",
    ),
    "scatter": (
        "graph f(%x: f32[90,33]) {\n  %i = iota() {size=90, dtype=i64} : i64[90]\n  %z = constant() {value=i64[]{7}} : i64[]\n"
        "  %j = remainder(%i, %z) : i64[90]\n  %0 = scatter_add(%x, %j) {axis=0, size=7} : f32[7,33]\n  return %0\n}",
        "",
    ),
}
