"""Training: the loop, checkpoints, scores and pictures of them."""

from twofold.train.checkpoint import Progress, read_checkpoint, save_checkpoint
from twofold.train.curves import plot_history
from twofold.train.evaluate import Score, evaluate
from twofold.train.fit import Trainer, fit
from twofold.train.report import Reporter

__all__ = [
    "Progress", "Reporter", "Score", "Trainer", "evaluate", "fit", "plot_history", "read_checkpoint", "save_checkpoint",
]  # fmt: skip
