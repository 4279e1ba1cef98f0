"""Nests as text, for reading (TWOFOLD_DEBUG=4) and for golden tests."""

from __future__ import annotations

from twofold.backends.cpu.loops.expr import Buffer, Expr
from twofold.backends.cpu.loops.index import Affine, Div, Dyn, Mod, Var
from twofold.backends.cpu.loops.nest import Nest, Store, simplified


class _Names:
    """Short names in the order of appearance, so that equal nests print equally."""

    def __init__(self) -> None:
        self.variables: dict[Var, str] = {}
        self.buffers: dict[Buffer, str] = {}

    def buffer(self, b: Buffer) -> str:
        return self.buffers.setdefault(b, f"{b.name}.{len(self.buffers)}")

    def index(self, a: Affine) -> str:
        terms = [(self.atom(atom), c) for atom, c in a.terms.items()]
        parts = [name if c == 1 else f"{c}*{name}" for name, c in sorted(terms)]
        if a.const or not parts:
            parts.append(str(a.const))
        return " + ".join(parts)

    def atom(self, atom: object) -> str:
        if isinstance(atom, Var):
            return self.variables.get(atom, repr(atom))
        if isinstance(atom, (Div, Mod)):
            return f"(({self.index(atom.inner)}) {atom.sign} {atom.divisor})"
        assert isinstance(atom, Dyn)
        return f"{{{self.expr(atom.expr)}}}"

    def expr(self, e: Expr) -> str:
        if e.kind == "const":
            return str(float.fromhex(e.extra)) if isinstance(e.extra, str) else str(e.extra)
        if e.kind == "load":
            guard = f" if {self.expr(e.args[0])}" if e.args else ""
            return f"{self.buffer(e.extra[0])}[{self.index(e.extra[1])}]{guard}"
        if e.kind == "index":
            return f"{e.dtype.short}({self.index(e.extra)})"
        if e.kind == "range":
            return f"{e.extra[1]} <= {self.index(e.extra[0])} < {e.extra[2]}"
        if e.kind == "acc":
            return f"acc{e.extra}"
        name = f"cast<{e.dtype.short}>" if e.extra == "cast" else e.extra
        return f"{name}({', '.join(map(self.expr, e.args))})"

    def store(self, s: Store) -> str:
        guard = f" if {self.expr(s.guard)}" if s.guard is not None else ""
        return f"{self.buffer(s.buffer)}[{self.index(s.address)}] = {self.expr(s.value)}{guard}"


def print_nest(nest: Nest) -> str:
    """The (simplified) nest as indented loops."""
    nest, names, lines, depth = simplified(nest), _Names(), [], 0
    names.variables = {v: f"i{k}" for k, v in enumerate(nest.dims)} | {v: f"r{k}" for k, v in enumerate(nest.rdims)}
    for v in nest.dims:
        lines.append("  " * depth + f"for {names.variables[v]} < {v.extent}:")
        depth += 1
    inner = depth
    for k, a in enumerate(nest.accumulators):
        lines.append("  " * depth + f"acc{k}: {a.dtype.short} = {names.expr(a.init)}")
    for v in nest.rdims:
        lines.append("  " * inner + f"for {names.variables[v]} < {v.extent}:")
        inner += 1
    lines += ["  " * inner + f"acc{k} = {names.expr(a.update)}" for k, a in enumerate(nest.accumulators)]
    lines += ["  " * inner + names.store(s) for s in nest.each]
    lines += ["  " * depth + names.store(s) for s in nest.stores]
    return "\n".join(lines)
