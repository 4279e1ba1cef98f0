"""Graph passes, one a file, and the list in which they run."""

from twofold.passes.pipeline import PIPELINE, optimise
from twofold.passes.specialise import specialise

__all__ = ["PIPELINE", "optimise", "specialise"]
