"""Tensors and variables, the array functions on them, and their gradients."""

from twofold.tensor import composite, functions, interop, methods, pullback
from twofold.tensor.gradients import enable_grad, grad, gradients, no_grad, value_and_grad, vjp
from twofold.tensor.tensor import Tensor, asarray, tensor
from twofold.tensor.transforms import checkpoint, custom_vjp, hvp, jvp
from twofold.tensor.variable import Variable

__all__ = [
    "Tensor", "Variable", "asarray", "checkpoint", "composite", "custom_vjp", "enable_grad", "functions", "grad",
    "gradients", "hvp", "interop", "jvp", "methods", "no_grad", "pullback", "tensor", "value_and_grad", "vjp",
]  # fmt: skip
