"""One of many: which of the registered ids a reading is most likely of, also where error correction fails.

An id is one word of n bits (`message`), so its registered ones are compared with the soft bits l of the reading:

    score(word) = sum of |l_k| over the bits where word and reading agree

The key stream that every word is XORed with makes its bits fair coins to whoever made the picture without this key. So
by chance the score is a sum of |l_k| over a random half of the bits; its distribution is computed exactly (convolution,
on a grid of `LEVELS` steps that the score is rounded to as well), and the p-value of the best of N ids is N times its
own (Bonferroni). It says that this id's word is in the picture rather than random bits. It does not tell the id from
one that is not registered and has a similar word; where the message itself can be read, that one is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .detection import Reading
from .extractors.keyed import KeyedExtractor
from .keys import Key
from .message import ID_BITS, SIZES, capacity, encode_id

__all__ = ["Identified", "identify", "soft_match_log10_p", "soft_readings", "word_size"]

LEVELS = 256  # steps of the largest soft bit


@dataclass(frozen=True)
class Identified:
    """The most likely of the registered ids.

    Attributes:
        id: As it is registered.
        log10_p: Base-10 logarithm of the chance that random bits fit one of the ids as well, their number counted.
        bit_accuracy: Share of its bits that were read.
        among: Number of ids that it was compared with, itself included.
    """

    id: str
    log10_p: float
    bit_accuracy: float
    among: int


def word_size(id: str) -> int:
    """Raw bits of the mark that an id is registered for: those whose ids are that wide, else the smallest that fit."""
    digits = len(id)
    exact = [size for size in SIZES if capacity(size).id_digits == digits]
    fitting = [size for size in SIZES if size >= ID_BITS and capacity(size).id_digits >= digits]
    return (exact + fitting + [SIZES[-1]])[0]


def soft_readings(reading: Reading, key: Key, sizes: Iterable[int]) -> dict[int, Tensor]:
    """Number of bits -> soft bits of a keyed reading; where nothing was detected, a guess for each of `sizes`."""
    if reading.detected:
        return {reading.num_bits: reading.logits}
    return {size: KeyedExtractor(key, size).guess(reading) for size in sizes}


def identify(readings: Mapping[int, Tensor], ids: Iterable[str], key: Key) -> Identified | None:
    """The most likely of the ids.

    Args:
        readings: Number of bits -> soft bits (k,), positive = bit 1.
        ids: Hexadecimal, as registered; each is compared with the reading of its `word_size`.
        key: Key of the marks.

    Returns:
        The best, whatever its p-value; None if no id has a reading to be compared with.
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
    """Base-10 logarithm of the chance that random bits score at least as well as `word`.

    Args:
        logits: (n,) soft bits.
        word: (n,) of 0/1.
    """
    weights = _weights(logits)
    score = int(weights[word.astype(bool) == (logits > 0)].sum())
    chances = np.ones(1)  # of each sum over a random half of the bits
    for weight in weights:
        wider = np.zeros(len(chances) + weight)
        wider[: len(chances)] += chances / 2
        wider[weight:] += chances / 2
        chances = wider
    return math.log10(chances[score:].sum())


def _weights(logits: np.ndarray) -> np.ndarray:
    size = np.abs(np.nan_to_num(logits))
    return np.round(size / max(size.max(), 1e-30) * LEVELS).astype(int)
