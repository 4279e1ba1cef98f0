"""The CPU backend: graphs become native programs, written through LLVM and run by a team of threads.

Layers, each importing only what is below it:

- ``backend``   takes a graph, gives a program (the graph half)
- ``apart``, ``remember``   programs made in another process; programs on disk
- ``lowering``  layout, fusion, memory plan, and the choice of kernels
- ``kernels``   generators of convolutions, products and poolings, specialised to shapes (see kernels/__init__.py)
- ``program``   ``Kernel`` (IR with one function), ``ProgramBuilder`` (kernels -> one SPMD function), ``Program.run``
- ``llvm``      IR text builder; the barrier and the native half of the team
- ``team``, ``jit``, ``cache``, ``machine``   threads; IR -> code; objects on disk; what the machine is like
"""

from twofold.backends.cpu.backend import BACKEND, CpuBackend, CpuProgram

__all__ = ["BACKEND", "CpuBackend", "CpuProgram"]
