"""Static programs: tracing and compiling functions, graphs built by hand, and programs loaded from files."""

from twofold.static.compile import CompiledFunction, compile
from twofold.static.control import cond, scan, while_loop
from twofold.static.loaded import LoadedFunction
from twofold.static.runner import GraphRunner
from twofold.static.session import Graph, Session, placeholder
from twofold.static.trace import Traced, trace

__all__ = [
    "CompiledFunction", "Graph", "GraphRunner", "LoadedFunction", "Session", "Traced", "compile", "cond", "placeholder",
    "scan", "trace", "while_loop",
]  # fmt: skip
