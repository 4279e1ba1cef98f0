"""Differentiation of values: ``gradients`` (reverse mode) and what is built on it."""

from twofold.autodiff.gradients import gradients, leaves, producers

__all__ = ["gradients", "leaves", "producers"]
