"""What happens to a picture between marking and reading.

Each attack is a small function of (images, strength, generator), differentiable or straight-through, under a
name in `ATTACKS`. Its result is rounded to 8 bit and says exactly where it lies in the frame of its input, so that
an optimiser can undo the geometry without searching for it. Results are never resized back.
"""

from . import codecs, filters, geometric, noises, overlays, tones  # noqa: F401  (each module fills the registry)
from .base import ATTACKS, Attack, Attacked, Chain, Kind, attack, chain, parse
from .suites import MIX, MIXES, SUITES, TrainingMix, suite, training_mix

__all__ = [
    "ATTACKS",
    "MIX",
    "MIXES",
    "SUITES",
    "Attack",
    "Attacked",
    "Chain",
    "Kind",
    "TrainingMix",
    "attack",
    "chain",
    "parse",
    "suite",
    "training_mix",
]
