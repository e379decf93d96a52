"""Attacks: what may happen to a marked image before it is read.

Each attack is a function of (images, strength, generator), differentiable or straight-through, under a name in
`ATTACKS`. Its result is rounded to 8 bit and comes with its exact geometry relative to the input, so that an optimiser
can undo the geometry without a search. Results are never resized back.
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
