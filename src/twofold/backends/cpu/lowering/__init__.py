"""From a graph to the steps of a program: rules, fusion, placement, memory plan."""

from twofold.backends.cpu.lowering.lower import lower
from twofold.backends.cpu.lowering.rules import INLINE, NESTS
from twofold.backends.cpu.lowering.steps import HostStep, KernelStep, NestStep, Plan

__all__ = ["INLINE", "NESTS", "HostStep", "KernelStep", "NestStep", "Plan", "lower"]
