"""Weight files: safetensors, and PyTorch's .pth without torch and without unpickling code; matching; models."""

from __future__ import annotations

from twofold.io.weights.model import load_weights, save_weights
from twofold.io.weights.read import Weights, read_weights
from twofold.io.weights.report import MatchReport, match
from twofold.io.weights.safetensors import write_safetensors
from twofold.io.weights.write_pth import write_pth

__all__ = [
    "MatchReport",
    "Weights",
    "load_weights",
    "match",
    "read_weights",
    "save_weights",
    "write_pth",
    "write_safetensors",
]
