"""Pictures: the zoo's accuracy against operations, first-layer filters, activations. Needs matplotlib (`twofold[plots]`)."""

from twofold.viz.bubbles import bubbles
from twofold.viz.tiles import activations, filters

__all__ = ["activations", "bubbles", "filters"]
