"""Differentiation of values: ``gradients`` (reverse mode) and what is built on it."""

from twofold.autodiff.check import check
from twofold.autodiff.checkpoint import checkpoint
from twofold.autodiff.custom import CustomVjp
from twofold.autodiff.forward import push_forward
from twofold.autodiff.gradients import gradients, leaves, producers

__all__ = ["CustomVjp", "check", "checkpoint", "gradients", "leaves", "producers", "push_forward"]
