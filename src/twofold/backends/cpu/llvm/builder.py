"""A builder of LLVM IR text: straight-line arithmetic, memory, loops with carried values.

Text is faster to make than llvmlite's object tree (a kernel takes about a millisecond) and is its own cache key.
Index arithmetic folds constants, so a generator can use one code path for static and run-time sizes.

    m = Module(host())
    f = m.function("scale", [("ptr", "x"), ("i64", "n")])
    with f.loop(0, f.arg("n")) as loop:
        p = f.gep(f.arg("x"), loop.index)
        f.store(f.fmul(f.load("float", p), 2.0), p)
    text = m.text()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from twofold.backends.cpu.llvm.values import BITS, Index, Value, const, vector
from twofold.backends.cpu.machine import Machine

Operand = Value | int | float | bool


class Module:
    """LLVM IR text for one machine: functions, declarations on demand, constants. ``plain`` ones are translated as they
    stand, in half the time: for long code that does little."""

    def __init__(self, machine: Machine, plain: bool = False):
        self.machine, self.plain = machine, plain
        self._functions: list[Function] = []
        self._declared: dict[str, str] = {}
        self._globals: dict[str, str] = {}

    def function(self, name: str, params: Sequence[tuple[str, str]], ret: str = "void", internal: bool = False):
        """Open a new function; ``params`` are (type, name) pairs."""
        function = Function(self, name, params, ret, internal)
        self._functions.append(function)
        return function

    def declare(self, name: str, ret: str, params: Sequence[str]) -> None:
        """Declare an external function (once); ``...`` as the last parameter type makes it variadic."""
        self._declared[name] = f"declare {ret} @{name}({', '.join(params)})"

    def constant(self, name: str, type: str, values: str) -> Value:
        """A private read-only global; ``values`` is its initialiser as IR text. Returns its pointer."""
        self._globals[name] = f"@{name} = private unnamed_addr constant {type} {values}, align 64"
        return Value("ptr", f"@{name}")

    def metadata(self, name: str, text: str) -> None:
        """A numbered piece of metadata."""
        self._globals[name] = f"{name} = {text}"

    def text(self) -> str:
        """The whole module; every function must have been finished or be finishable with ``ret void``."""
        m = self.machine
        bodies = [function.text() for function in self._functions]
        defined = {function.name for function in self._functions}
        declared = [line for name, line in self._declared.items() if name not in defined]
        attributes = ['nounwind "frame-pointer"="none"', f'"target-cpu"="{m.cpu}"']
        if self.plain:
            attributes.append("optnone noinline")
        if m.features:
            attributes.append(f'"target-features"="{m.features}"')
        if m.is_x86:
            attributes += [f'"prefer-vector-width"="{m.vector_bits}"', f'"min-legal-vector-width"="{m.vector_bits}"']
        head = [f'target triple = "{m.triple}"', *self._globals.values()]
        return "\n".join([*head, *bodies, *declared, f"attributes #0 = {{ {' '.join(attributes)} }}", ""])


class Loop:
    """A counted loop being built: ``index``, ``carried`` inside; ``results`` after it."""

    def __init__(self, index: Value, carried: list[Value]):
        self.index, self.carried = index, carried
        self._next: list[Value] = list(carried)
        self.results: list[Value] = []

    def carry(self, values: Sequence[Value]) -> None:
        """What ``carried`` is in the next round (and ``results`` after the last)."""
        self._next = list(values)


class Function:
    """One function under construction: methods append instructions and return values."""

    def __init__(self, module: Module, name: str, params: Sequence[tuple[str, str]], ret: str, internal: bool):
        self.module, self.name, self.ret_type = module, name, ret
        self.machine = module.machine
        self._head = "internal " if internal else ""
        self._params = {p: Value(t, f"%{p}") for t, p in params}
        self._lines: list[str] = ["entry:"]
        self._count = 0
        self._block = "entry"
        self._ended = False
        self._shift = 0  # lines put into the entry block since, for the places of phis
        self._crowded = False

    # ---- plumbing -------------------------------------------------------------------------------------------------
    def arg(self, name: str) -> Value:
        return self._params[name]

    def emit(self, line: str) -> None:
        self._lines.append(line)

    def fresh(self, stem: str = "v") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def value(self, type: str, text: str) -> Value:
        """Append ``%new = text`` and return it as a value of ``type``."""
        name = f"%{self.fresh()}"
        self._lines.append(f"{name} = {text}")
        return Value(type, name)

    def label(self, name: str) -> None:
        self._lines.append(f"{name}:")
        self._block = name

    def ret(self, value: Value | None = None) -> None:
        self.emit(f"ret {value}" if value else "ret void")
        self._ended = True

    def text(self) -> str:
        if not self._ended:
            self.ret()
        params = ", ".join(map(str, self._params.values()))
        body = "\n".join(self._lines)
        return f"define {self._head}{self.ret_type} @{self.name}({params}) #0 {{\n{body}\n}}"

    # ---- constants and types --------------------------------------------------------------------------------------
    def vec(self, element: str = "float") -> str:
        """The machine's vector type for 32-bit elements (same lane count for every element type)."""
        return vector(element, self.machine.lanes)

    def index(self, value: Index) -> Value:
        return const("i64", value) if isinstance(value, int) else value

    def like(self, value: Operand, other: Value) -> Value:
        """``value`` as an operand beside ``other``: constants and scalars are splat to its lanes."""
        if not isinstance(value, Value):
            return const(other.type, value)
        if other.lanes and not value.lanes:
            return self.splat(value, other.lanes)
        return value

    def _pair(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        if not isinstance(a, Value):
            assert isinstance(b, Value), "one operand must be a value"
            return const(b.type, a), b
        b = self.like(b, a)
        return self.like(a, b), b

    # ---- index arithmetic (i64, constants folded) -----------------------------------------------------------------
    def add(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0:
            return b
        return a if b == 0 else self.value("i64", f"add {self.index(a)}, {self.index(b).name}")

    def sub(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.value("i64", f"sub {self.index(a)}, {self.index(b).name}")

    def mul(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1 or b == 1:
            return b if a == 1 else a
        return self.value("i64", f"mul {self.index(a)}, {self.index(b).name}")

    def div(self, a: Index, b: Index) -> Index:
        """Floor division of non-negative numbers."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        return a if b == 1 else self.value("i64", f"udiv {self.index(a)}, {self.index(b).name}")

    def rem(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a % b
        return 0 if b == 1 else self.value("i64", f"urem {self.index(a)}, {self.index(b).name}")

    def imin(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.call("llvm.smin.i64", "i64", [self.index(a), self.index(b)])

    def imax(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.call("llvm.smax.i64", "i64", [self.index(a), self.index(b)])

    def dot(self, terms: Sequence[tuple[Index, Index]]) -> Index:
        """The sum of products: an address from indices and strides."""
        total: Index = 0
        for a, b in terms:
            total = self.add(total, self.mul(a, b))
        return total

    def divmod_chain(self, flat: Index, extents: Sequence[Index]) -> list[Index]:
        """The multi-index of ``flat`` in a row-major box of these extents."""
        out: list[Index] = []
        for extent in reversed(extents[1:]):
            if extent == 1:
                out.append(0)
                continue
            quotient = self.div(flat, extent)
            out.append(self.sub(flat, self.mul(quotient, extent)))
            flat = quotient
        return [flat, *reversed(out)]

    # ---- arithmetic on values -------------------------------------------------------------------------------------
    def binary(self, opcode: str, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        return self.value(x.type, f"{opcode} {x}, {y.name}")

    def fadd(self, a: Operand, b: Operand) -> Value:
        return self.binary("fadd", a, b)

    def fsub(self, a: Operand, b: Operand) -> Value:
        return self.binary("fsub", a, b)

    def fmul(self, a: Operand, b: Operand) -> Value:
        return self.binary("fmul", a, b)

    def fdiv(self, a: Operand, b: Operand) -> Value:
        return self.binary("fdiv", a, b)

    def fma(self, a: Operand, b: Operand, c: Value) -> Value:
        """a * b + c, rounded once where the machine has fused multiply-add."""
        return self.intrinsic("fmuladd", self.like(a, c), self.like(b, c), c)

    def fma_onto(self, a: Value, b: Value, c: Value) -> Value:
        """``a*b + c``, the result in the register of ``c``.

        Where ``a`` is used only here, LLVM likes to overwrite ``a`` instead: then the accumulators of a loop wander through
        the registers and are moved back at its end, one move for each multiply-add. AVX2 has no registers to spare for that
        (AVX-512 folds the load of ``a`` into the instruction, which settles it).
        """
        machine = self.machine
        if not machine.is_x86 or (machine.lanes, machine.registers) != (8, 16) or c.type != self.vec():
            return self.fma(a, b, c)
        operands = ", ".join(f"{v.type} {v.name}" for v in (a, b, c))
        return self.value(c.type, f'call {c.type} asm "vfmadd231ps $2, $1, $0", "=x,x,x,0"({operands})')

    def dot_onto(self, a: Value, b: Value, c: Value) -> Value:
        """``c`` plus the products of pairs: a lane of ``a`` and of ``b`` holds two bfloat16 in the bits of a float.

        (VDPBF16PS: the odd elements' products are added first; sums round to nearest even, subnormal numbers are zeros.)
        """
        pairs = vector("bfloat", 2 * c.lanes)
        x, y = (self.value(pairs, f"bitcast {v} to {pairs}") for v in (a, b))
        return self.call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * c.lanes}", c.type, [c, x, y])

    def paired(self, low: Value, high: Value) -> Value:
        """Two vectors of 16-bit elements as one of pairs in the bits of floats: ``low`` comes first in memory."""
        wide = self.binary("or", self.cast("zext", low, "i32"), self.binary("shl", self.cast("zext", high, "i32"), 16))
        return self.cast("bitcast", wide, "float")

    def fmax(self, a: Operand, b: Operand) -> Value:
        """The larger; NaN if either is NaN (by compare and select: one or two instructions everywhere)."""
        x, y = self._pair(a, b)
        larger = self.select(self.fcmp("ogt", x, y), x, y)
        return self.select(self.fcmp("uno", x, x), x, larger)

    def relu(self, x: Value) -> Value:
        """max(x, 0), keeping NaN."""
        zero = self.zero(x.type)
        return self.select(self.fcmp("olt", x, zero), zero, x)

    def zero(self, type: str) -> Value:
        """Zero, made where it stands in what is ``crowded``."""
        zero = const(type, 0.0)
        return self.settled(zero) if self._crowded and zero.lanes and zero.element == "float" else zero

    def fcmp(self, predicate: str, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        return self.value(vector("i1", x.lanes), f"fcmp {predicate} {x}, {y.name}")

    def icmp(self, predicate: str, a: Operand, b: Operand) -> Value:
        x, y = self._pair(a, b)
        return self.value(vector("i1", x.lanes), f"icmp {predicate} {x}, {y.name}")

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        return self.value(a.type, f"select {condition}, {a}, {b}")

    def cast(self, opcode: str, x: Value, element: str) -> Value:
        """``opcode`` is LLVM's: fpext fptrunc sitofp uitofp fptosi zext sext trunc bitcast ..."""
        to = vector(element, x.lanes)
        return self.value(to, f"{opcode} {x} to {to}")

    def call(self, name: str, ret: str, args: Sequence[Value]) -> Value:
        """Call a function or intrinsic, declared on first use."""
        self.module.declare(name, ret, [a.type for a in args])
        text = f"call {ret} @{name}({', '.join(map(str, args))})"
        if ret == "void":
            self.emit(text)
            return Value("void", "")
        return self.value(ret, text)

    def intrinsic(self, name: str, *args: Value) -> Value:
        """An elementwise intrinsic such as ``sqrt`` or ``fmuladd``: its suffix follows the first operand's type."""
        first = args[0]
        suffix = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}.get(first.element, first.element)
        lanes = f"v{first.lanes}" if first.lanes else ""
        return self.call(f"llvm.{name}.{lanes}{suffix}", first.type, args)

    # ---- vectors --------------------------------------------------------------------------------------------------
    def splat(self, x: Value, lanes: int | None = None) -> Value:
        lanes = lanes or self.machine.lanes
        kind = vector(x.element, lanes)
        single = self.value(kind, f"insertelement {kind} poison, {x}, i64 0")
        return self.value(kind, f"shufflevector {single}, {kind} poison, <{lanes} x i32> zeroinitializer")

    def shuffle(self, a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
        """Pick lanes of ``a`` then ``b`` by number; -1 leaves a lane undefined."""
        mask = ", ".join("i32 poison" if lane < 0 else f"i32 {lane}" for lane in lanes)
        other = b or Value(a.type, "poison")
        return self.value(vector(a.element, len(lanes)), f"shufflevector {a}, {other}, <{len(lanes)} x i32> <{mask}>")

    def extract(self, x: Value, lane: Index) -> Value:
        return self.value(x.element, f"extractelement {x}, {self.index(lane)}")

    def insert(self, x: Value, scalar: Value, lane: Index) -> Value:
        return self.value(x.type, f"insertelement {x}, {scalar}, {self.index(lane)}")

    def reduce(self, combine: Callable[[Value, Value], Value], x: Value) -> Value:
        """Fold the lanes to a scalar, halving: lane i meets lane i + n/2 (a fixed order)."""
        while x.lanes > 1:
            half = x.lanes // 2
            x = combine(self.shuffle(x, None, range(half)), self.shuffle(x, None, range(half, 2 * half)))
        return self.extract(x, 0)

    def transposed(self, rows: Sequence[Value]) -> list[Value]:
        """A square of vectors turned: lane ``j`` of row ``i`` becomes lane ``i`` of row ``j``."""
        square, lanes, half = list(rows), len(rows), 1
        while half < lanes:
            for i in (i for i in range(lanes) if not i & half):
                a, b = square[i], square[i + half]
                square[i] = self.shuffle(a, b, [k if not k & half else lanes + k - half for k in range(lanes)])
                square[i + half] = self.shuffle(a, b, [k + half if not k & half else lanes + k for k in range(lanes)])
            half *= 2
        return square

    # ---- memory ---------------------------------------------------------------------------------------------------
    def gep(self, pointer: Value, offset: Index, element: str = "float") -> Value:
        """``pointer`` advanced by ``offset`` elements."""
        if offset == 0:
            return pointer
        return self.value("ptr", f"getelementptr {element}, {pointer}, {self.index(offset)}")

    def afresh(self, pointer: Value) -> Value:
        """The same address as one that the code generator does not recognise: what was loaded from there is loaded again, and
        not kept in registers that there are not. (Only on x86: inline assembly needs the parser of the target.)"""
        if not self.machine.is_x86:
            return pointer
        return self.value("ptr", f'call ptr asm "", "=r,0"({pointer})')

    def settled(self, x: Value) -> Value:
        """A vector that the code generator takes as it is: shuffles of it stay shuffles of it, instead of becoming others of
        what it was made of. (Only on x86, as ``afresh``.)"""
        if not self.machine.is_x86:
            return x
        return self.value(x.type, f'call {x.type} asm "", "=v,0"({x})')

    @contextlib.contextmanager
    def crowded(self) -> Iterator[None]:
        """Inside, the sums of a tile fill the registers: ``zero`` is made where it stands. LLVM would make it
        outside of all loops, and keep sums in the stack in its stead (7x7/2 of 3 channels had 84 % of the peak, and has 98 %).
        (Only on x86, as ``afresh``.)"""
        before, self._crowded = self._crowded, self.machine.is_x86
        yield
        self._crowded = before

    def load(self, type: str, pointer: Value, align: int | None = None) -> Value:
        return self.value(type, f"load {type}, {pointer}, align {align or BITS[Value(type, '').element] // 8}")

    def store(self, x: Value, pointer: Value, align: int | None = None) -> None:
        self.emit(f"store {x}, {pointer}, align {align or BITS[x.element] // 8}")

    def vload(
        self, pointer: Value, count: int | None = None, element: str = "float", lanes: int | None = None
    ) -> Value:
        """A vector whose first ``count`` lanes come from memory, zeros above; reads nothing beyond them.

        A short load is done in power-of-two pieces: a masked load is slow or missing on some machines.
        """
        lanes = lanes or self.machine.lanes
        count = lanes if count is None else count
        if count == lanes:
            return self.load(vector(element, lanes), pointer)
        result = const(vector(element, lanes), 0)
        for start, size in _pieces(count):
            piece = self.load(vector(element, size), self.gep(pointer, start, element))
            wide = self.shuffle(piece, None, [*range(size), *[-1] * (lanes - size)])
            pick = [lanes + i - start if start <= i < start + size else i for i in range(lanes)]
            result = self.shuffle(result, wide, pick)
        return result

    def vstore(self, x: Value, pointer: Value, count: int | None = None) -> None:
        """Store the first ``count`` lanes (all by default), in power-of-two pieces."""
        if count is None or count == x.lanes:
            self.store(x, pointer)
            return
        for start, size in _pieces(count):
            self.store(self.shuffle(x, None, range(start, start + size)), self.gep(pointer, start, x.element))

    def stream(self, x: Value, pointer: Value) -> None:
        """Store a whole vector past the caches; ``pointer`` must be aligned to the vector's size."""
        self.module.metadata("!0", "!{i32 1}")
        self.emit(f"store {x}, {pointer}, align {x.lanes * BITS[x.element] // 8}, !nontemporal !0")

    def is_aligned(self, pointer: Value, size: int) -> Value:
        """Whether an address is a multiple of ``size`` (a power of two)."""
        low = self.value("i64", f"and {self.value('i64', f'ptrtoint {pointer} to i64')}, {size - 1}")
        return self.icmp("eq", low, 0)

    def broadcast(self, pointer: Value) -> Value:
        """One float from memory in every lane."""
        return self.splat(self.load("float", pointer))

    def stack(self, count: int, element: str = "ptr") -> Value:
        """Room for ``count`` elements in this function's frame (taken once, whatever loop asks for it)."""
        name = f"%{self.fresh('stack')}"
        self._lines.insert(1, f"{name} = alloca {element}, i64 {count}, align 64")
        self._shift += 1
        return Value("ptr", name)

    def aside(self, values: Sequence[Value]) -> Callable[[], list[Value]]:
        """Put values of one type into the stack, for as long as registers are needed for other things; the result brings them
        back. (Where a loop leaves more values than registers can hold through what follows, LLVM keeps some in the stack in the
        loop already.)"""
        room = self.stack(len(values), values[0].type)
        places = [self.gep(room, k, value.type) for k, value in enumerate(values)]
        for value, at in zip(values, places):
            self.emit(f"store volatile {value}, {at}, align 4")
        return lambda: [self.value(v.type, f"load volatile {v.type}, {at}, align 4") for v, at in zip(values, places)]

    def prefetch(self, pointer: Value, locality: int = 3, write: bool = False) -> None:
        """Ask for a cache line; ``locality`` 3 keeps it in all levels, 0 in none."""
        self.module.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.emit(f"call void @llvm.prefetch.p0({pointer}, i32 {int(write)}, i32 {locality}, i32 1)")

    # ---- control --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def loop(self, start: Index, stop: Index, step: int = 1, carry: Sequence[Value] = ()) -> Iterator[Loop]:
        """``for index in range(start, stop, step)``, tested at the bottom; ``carry`` enters as ``loop.carried``."""
        body, done = self.fresh("loop"), self.fresh("done")
        before = self._block
        certain = isinstance(start, int) and isinstance(stop, int) and start < stop
        if certain:
            self.emit(f"br label %{body}")
        else:
            enter = self.icmp("slt", self.index(start), self.index(stop))
            self.emit(f"br {enter}, label %{body}, label %{done}")
        self.label(body)
        index = Value("i64", f"%{self.fresh('i')}")
        carried = [Value(c.type, f"%{self.fresh('c')}") for c in carry]
        slot = len(self._lines) - self._shift
        self._lines.append("")  # the phis, once the values of the next round are known
        loop = Loop(index, carried)
        yield loop
        following = self.value("i64", f"add {index}, {step}")
        again = self.icmp("slt", following, self.index(stop))
        latch = self._block
        self.emit(f"br {again}, label %{body}, label %{done}")
        phis = [(index, self.index(start), following), *zip(carried, carry, loop._next)]
        self._lines[slot + self._shift] = "\n".join(
            f"{v.name} = phi {v.type} [ {a.name}, %{before} ], [ {n.name}, %{latch} ]" for v, a, n in phis
        )
        self.label(done)
        if certain:
            loop.results = loop._next
        else:
            loop.results = [
                self.value(a.type, f"phi {a.type} [ {a.name}, %{before} ], [ {n.name}, %{latch} ]")
                for a, n in zip(carry, loop._next)
            ]

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Instructions done only if ``condition`` (an i1) holds."""
        then, done = self.fresh("then"), self.fresh("endif")
        self.emit(f"br {condition}, label %{then}, label %{done}")
        self.label(then)
        yield
        self.emit(f"br label %{done}")
        self.label(done)

    def return_if(self, condition: Value) -> None:
        """Return here, from a function without a result, if ``condition`` (an i1) holds."""
        stop, on = self.fresh("stop"), self.fresh("on")
        self.emit(f"br {condition}, label %{stop}, label %{on}")
        self.label(stop)
        self.emit("ret void")
        self.label(on)

    def choose(
        self, condition: Value, yes: Callable[[], Sequence[Value]], no: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """Branch: the values of ``yes()`` if ``condition`` holds, else of ``no()`` (same types)."""
        labels = [self.fresh("yes"), self.fresh("no")]
        done = self.fresh("join")
        self.emit(f"br {condition}, label %{labels[0]}, label %{labels[1]}")
        ends, results = [], []
        for label, branch in zip(labels, (yes, no)):
            self.label(label)
            results.append(list(branch()))
            ends.append(self._block)
            self.emit(f"br label %{done}")
        self.label(done)
        return [
            self.value(a.type, f"phi {a.type} [ {a.name}, %{ends[0]} ], [ {b.name}, %{ends[1]} ]")
            for a, b in zip(*results)
        ]

    def share(self, total: Index, tid: Index, threads: Index) -> tuple[Index, Index]:
        """The part [low, high) of ``range(total)`` that thread ``tid`` of ``threads`` does: a static partition."""
        low = self.div(self.mul(total, tid), threads)
        return low, self.div(self.mul(total, self.add(tid, 1)), threads)


def _pieces(count: int) -> list[tuple[int, int]]:
    """``count`` as (start, power-of-two size) pieces: 7 -> (0, 4), (4, 2), (6, 1)."""
    pieces, start = [], 0
    while start < count:
        size = 1 << ((count - start).bit_length() - 1)
        pieces.append((start, size))
        start += size
    return pieces
