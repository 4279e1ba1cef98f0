"""The machine that kernels are generated for: its vectors, registers, caches and cores.

Generators read a ``Machine`` and nothing else, so one generator serves AVX-512, AVX2 and NEON, and a kernel for another
machine can be emitted (not run) anywhere: ``AVX512`` and ``NEON`` below are such targets.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twofold.backends.cpu import cache
from twofold.base import flags


@dataclass(frozen=True)
class Machine:
    """What a kernel generator may know. Sizes are in bytes, rates in instructions per cycle."""

    triple: str
    cpu: str
    features: str
    lanes: int  # float32 elements in a vector register
    registers: int  # vector registers
    l1: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 16 << 20
    l1_ways: int = 8
    fma_rate: int = 2
    fma_latency: int = 4
    load_rate: int = 2
    bf16_dots: bool = False  # adds products of pairs of bfloat16 to float32 lanes in one instruction

    @property
    def vector_bits(self) -> int:
        return 32 * self.lanes

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "i386", "i686"))

    @property
    def is_linux(self) -> bool:
        return "linux" in self.triple

    @property
    def key(self) -> str:
        """The part of the description on which machine code depends (for the object cache)."""
        return f"{self.triple}|{self.cpu}|{self.features}|{self.vector_bits}"

    @property
    def stores_lines(self) -> bool:
        """Whether a vector is a whole line of the cache."""
        return self.vector_bits == 8 * LINE

    def overflows(self, nbytes: int) -> bool:
        """Whether an array is better written past the caches, where that is done in whole lines: the last one would not keep
        it until it is read, and a line need not be read to be overwritten then."""
        return nbytes > self.l3 // 2

    def narrowed(self, channels: int) -> Machine:
        """This machine with vectors of half as many elements, where AVX-512's would lie idle by half or more: those of
        AVX2 are at least as quick a piece, twice as quick where the processor does 512 bits in two goes."""
        return replace(self, lanes=8, fma_rate=2) if self.is_x86 and self.lanes == 16 and channels <= 8 else self

    def accumulators(self, weights: int) -> int:
        """Registers left for accumulators beside ``weights`` weight vectors and one broadcast."""
        return self.registers - weights - 1


# Multiply-adds of whole vectors a cycle, by LLVM's name of the processor, where it is not two: these do 512 bits in halves, or
# have one unit for them.
FMA_RATES = {"znver4": 1, "cannonlake": 1, "icelake-client": 1, "tigerlake": 1, "rocketlake": 1}

LINE = 64  # bytes of a cache line
SHARE = 4  # a team counts on this part of the last cache: others use it too
FEW_THREADS = 2  # as many second caches are counted on

AVX2 = Machine("x86_64-unknown-linux-gnu", "x86-64-v3", "", lanes=8, registers=16)
AVX512 = Machine("x86_64-unknown-linux-gnu", "x86-64-v4", "", lanes=16, registers=32, l1=48 << 10, l1_ways=12, l2=1 << 20)
AVX512_BF16 = replace(AVX512, features="+avx512bf16", bf16_dots=True)
NEON = Machine("aarch64-unknown-linux-gnu", "neoverse-n1", "", lanes=4, registers=32, l1=64 << 10, l1_ways=4, l2=1 << 20)


@functools.cache
def host() -> Machine:
    """The machine this process runs on. What LLVM finds out about it is kept in the cache as long as the system describes
    the same processor, for LLVM takes a third of a second to load."""
    described, rules = _described(), Path(__file__).read_text()
    name = hashlib.sha256("\0".join(["host", cache.versions(), described, rules]).encode()).hexdigest()
    kept = cache.get(name) if described else None
    machine = Machine(**json.loads(kept)) if kept else _asked()
    if described and not kept:
        cache.put(name, json.dumps(asdict(machine)).encode())
    return replace(machine, **_caches())


@functools.cache
def identity() -> str:
    """Names the machine, with LLVM's help only where the system says too little."""
    return f"{_described() or host()}{sorted(_caches().items())}"


def _described() -> str:
    """What Linux tells of the first processor that does not change while it runs; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return ""
    lines = [line for line in first if not line.startswith(("cpu MHz", "bogomips", "processor", "apicid", "core id"))]
    return "\n".join([platform.machine(), *lines])


def _asked() -> Machine:
    """The machine as LLVM describes it."""
    import llvmlite.binding as llvm

    triple, cpu = llvm.get_process_triple(), llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        vectors = {"lanes": 16, "registers": 32}
    elif features.get("avx2") and features.get("fma"):
        vectors = {"lanes": 8, "registers": 16}
    elif triple.startswith(("aarch64", "arm64")):
        vectors = {"lanes": 4, "registers": 32}
    else:
        vectors = {"lanes": 4, "registers": 16}
    rate = FMA_RATES.get(cpu, 2) if vectors["lanes"] == 16 else 2
    pairs = bool(features.get("avx512bf16")) and vectors["lanes"] == 16
    return Machine(triple, cpu, features.flatten(), fma_rate=rate, bf16_dots=pairs, **vectors)


def rooms() -> tuple[int, int]:
    """Bytes that a team has room for in its second caches, and in its part of the last one, however many threads it has:
    what is done a few images at a time shall be the same for all, to the bit. Does not ask LLVM."""
    found = _caches()
    return found.get("l2", Machine.l2) * FEW_THREADS, found.get("l3", Machine.l3) // SHARE


def _caches() -> dict[str, Any]:
    """The fields of a Machine that tell of its data caches, as Linux knows them; none where it does not."""
    found: dict[str, Any] = {}
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level = (folder / "type").read_text().strip(), (folder / "level").read_text().strip()
            text = (folder / "size").read_text().strip()
            size = int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
            ways = int((folder / "ways_of_associativity").read_text())
        except (OSError, ValueError, IndexError):
            continue
        if kind != "Instruction" and level in "123":
            found[f"l{level}"] = size
            if level == "1" and ways > 0:
                found["l1_ways"] = ways
    return found


def num_threads() -> int:
    """Threads a team should have: TWOFOLD_NUM_THREADS, or as many cores as the process may use."""
    return flags.get("TWOFOLD_NUM_THREADS") or available_cores()


def available_cores() -> int:
    """Cores this process may run on: its affinity mask, cut by the CPU quota of its control groups."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota + 0.5))) if quota else max(1, cores)


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota, in cores, of the control groups above this process (v2, then v1); None if unlimited."""
    groups = control_groups("cpu", root, membership)
    quotas = [_quota_v2(folder) if unified else _quota_v1(folder) for folder, unified in groups]
    return min((quota for quota in quotas if quota), default=None)


def control_groups(
    controller: str, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> list[tuple[Path, bool]]:
    """The folders of this process's control groups, from the outermost to its own, and whether each is of version 2."""
    if platform.system() != "Linux":
        return []
    try:
        rows = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (row for row in rows if len(row) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        parts = [p for p in path.split("/") if p and p != ".."]
        found += [(base.joinpath(*parts[:depth]), not controllers) for depth in range(len(parts) + 1)]
    return found


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
