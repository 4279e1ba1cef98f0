"""How images (N, C, H, W) lie where kernels read and write them."""

from __future__ import annotations

CHANNELS_LAST = (0, 2, 3, 1)  # their dimensions from the outermost in memory to the innermost
CHANNELS_SECOND = (0, 3, 1, 2)  # and those of (N, H, W, C) that give (N, C, H, W) again
