"""Generators of kernels specialised to shapes: each returns a ``program.Kernel``.

The interface for whoever lowers graphs:

- ``choose.forward | data_gradient | weight_gradient`` pick the algorithm of a convolution (direct, Winograd, small
  groups) by its cost, and say how its weights are prepared: a chain of kernels from the users' order, or from the
  packed order in which parameters may be kept between steps (``choose.packed_weights``). ``gemm.matmul`` and
  ``pool.forward | gradient`` are the rest.
- Activations are channels-last: element (n, h, w, c) lies at ``((n*H + h)*W + w)*ld + c`` from the pointer given.
``ld``
  (the distance of two pixels, in elements; ``C`` unless told) may be larger, so that a kernel reads or writes a slice
  of channels of a concatenation: pass a ``Ref`` at its first channel and the ``ld`` of the whole.
- Convolution weights are given packed (``weights.Packed``); ``weights.repack`` converts from and to
  ``(O, I, KH, KW)`` and between packed orders. The weight gradient is written in the packed order.
- ``epilogue`` is a tuple of steps (``epilogue.py``: Bias, ScaleShift, Residual, Relu, Statistics, or one's own) applied
  to the results while they are in registers; each adds its pointer parameters after the kernel's own.
- A kernel's ``params`` name its pointers in order (``x, w, y``, then the epilogue's, then ``workspace`` or ``scratch``
if
  it asks for them); ``kernel.workspace`` and ``kernel.scratch`` (per thread) are bytes to be planned for. Places
  aligned to 64 bytes are faster; none need be.
- No kernel ends with a barrier: the caller puts one before whatever reads the results. Results have the same bits for
  any number of threads. Nothing outside the buffers is read or written.
"""
