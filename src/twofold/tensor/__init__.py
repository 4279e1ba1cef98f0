"""Tensors and variables."""

from twofold.tensor import functions
from twofold.tensor.tensor import Tensor, Variable, asarray, tensor

__all__ = ["Tensor", "Variable", "asarray", "functions", "tensor"]
