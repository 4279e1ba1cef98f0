"""Differentiation of values: ``gradients`` (reverse mode) and what is built on it."""

from twofold.autodiff import control
from twofold.autodiff.gradients import gradients, leaves, producers

__all__ = ["control", "gradients", "leaves", "producers"]
