"""Identification: the most likely of the registered ids, also if error correction fails.

Each id is encoded as one word of n bits (`message`), which is compared with the soft bits l of the reading:

    score(word) = sum of |l_k| over the bits where word and reading agree

The key stream that every word is XORed with makes its bits uniformly random to
everyone without this key. So without a watermark the score is a sum of |l_k| over a random half of the bits; its
distribution is computed exactly (convolution,
on a grid of `LEVELS` steps that the score is rounded to as well), and the p-value of the best of N ids is N times its
own (Bonferroni). It tests the word of this id against random bits, and not against
an unregistered id with a similar word; a message that can be read is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...payload.keys import Key
from ...payload.message import ID_BITS, SIZES, capacity, encode_id

__all__ = ["Identified", "identify", "soft_match_log10_p", "word_size"]

LEVELS = 256  # steps of the largest soft bit


@dataclass(frozen=True)
class Identified:
    """The most likely of the registered ids.

    Attributes:
        id: The id as registered.
        log10_p: log10 of the probability that random bits fit any of the ids as well, corrected for their number.
        bit_accuracy: Share of its bits that were read.
        among: Number of compared ids, itself included.
    """

    id: str
    log10_p: float
    bit_accuracy: float
    among: int


def word_size(id: str) -> int:
    """Raw bits of a registered id: the size whose ids have as many digits, else the smallest that the id fits."""
    digits = len(id)
    exact = [size for size in SIZES if capacity(size).id_digits == digits]
    fitting = [size for size in SIZES if size >= ID_BITS and capacity(size).id_digits >= digits]
    return (exact + fitting + [SIZES[-1]])[0]


def identify(readings: Mapping[int, Tensor], ids: Iterable[str], key: Key) -> Identified | None:
    """The most likely of the ids.

    Args:
        readings: Number of bits -> soft bits (k,), positive = bit 1.
        ids: Hexadecimal, as registered; each is compared with the reading of its `word_size`.
        key: Key of the watermarks.

    Returns:
        The best id, with any p-value; None if no id can be compared with the readings.
    """
    words: dict[int, dict[int, tuple[str, np.ndarray]]] = {}
    for id in ids:
        size = word_size(id)
        if size in readings and int(id, 16) < 16 ** capacity(size).id_digits:
            words.setdefault(size, {})[int(id, 16)] = (id, encode_id(id, key, size).bits.numpy())
    best: list[tuple[float, str, float]] = []
    for size, of_size in words.items():
        logits = readings[size].detach().cpu().double().numpy()
        names, matrix = zip(*of_size.values(), strict=True)
        agree = np.stack(matrix) == (logits > 0)
        top = int((agree @ _weights(logits)).argmax())
        best.append((soft_match_log10_p(logits, matrix[top]), names[top], float(agree[top].mean())))
    if not best:
        return None
    among = sum(map(len, words.values()))
    log10_p, id, accuracy = min(best)
    return Identified(id, min(0.0, log10_p + math.log10(among)), accuracy, among)


def soft_match_log10_p(logits: np.ndarray, word: np.ndarray) -> float:
    """log10 of the probability that random bits score at least as well as `word`.

    Args:
        logits: (n,) soft bits.
        word: (n,) of 0/1.
    """
    weights = _weights(logits)
    score = int(weights[word.astype(bool) == (logits > 0)].sum())
    chances = np.ones(1)  # probability of each sum over a random half of the bits
    for weight in weights:
        wider = np.zeros(len(chances) + weight)
        wider[: len(chances)] += chances / 2
        wider[weight:] += chances / 2
        chances = wider
    return math.log10(chances[score:].sum())


def _weights(logits: np.ndarray) -> np.ndarray:
    size = np.abs(np.nan_to_num(logits))
    return np.round(size / max(size.max(), 1e-30) * LEVELS).astype(int)
