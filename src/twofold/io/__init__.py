"""Files and formats: ONNX, safetensors, PyTorch weights, checkpoints."""

from twofold.io.programs import export, load
from twofold.io.weights import load_weights, save_weights

__all__ = ["export", "load", "load_weights", "save_weights"]
