"""Differentiation of values: ``gradients`` (reverse mode) and what is built on it."""

from twofold.autodiff.gradients import gradients, leaves

__all__ = ["gradients", "leaves"]
