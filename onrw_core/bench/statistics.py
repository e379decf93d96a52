"""Statistics of readings: rates, intervals by photo, worst photos."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from ..extractors.reading import match_log10_p
from ..payload.keys import Key
from ..payload.message import SIZES, decode
from .systems import Outcome

__all__ = [
    "FPRS",
    "PUBLIC",
    "bootstrap",
    "by_photo",
    "interval",
    "judge",
    "positive",
    "present",
    "public_summary",
    "summary",
    "worst",
]

FPRS = (1e-3, 1e-6)
NORMAL_95 = 1.96
DRAWS = 4000  # of the bootstrap
PUBLIC = "public"  # key of what the public layer says in the record of a reading

Record = dict[str, Any]


def judge(outcome: Outcome, expected, key: Key, value: str) -> Record:
    """Compare a reading with what was marked.

    A reading with another number of bits than were marked is judged by the bits that both have, as far as accuracy
    goes, and is never the right message.

    Args:
        outcome: What was read.
        expected: (k,) of 0/1, marked.
        key: Of the message schema.
        value: The id that the bits carry; "" for raw bits.

    Returns:
        accuracy, word (all bits right), message (right after error correction), log10_match, log10_presence, seconds.
    """
    record: Record = {"seconds": round(outcome.seconds, 4), "log10_presence": outcome.log10_presence}
    if outcome.bits is None:
        return record | {"accuracy": 0.5, "word": False, "message": False, "log10_match": 0.0, "bits": 0}
    bits = outcome.bits
    shared = min(len(bits), len(expected))
    accuracy = (bits[:shared] == expected[:shared]).float().mean().item() if shared else 0.5
    same = len(bits) == len(expected)
    message = False
    if same and value and len(bits) in SIZES:
        values = bits if outcome.logits is None else outcome.logits
        message = decode(values, key).value == value
    return record | {
        "accuracy": round(accuracy, 5),
        "word": same and accuracy == 1,
        "message": message,
        "log10_match": round(match_log10_p(bits, expected), 3) if same else 0.0,
        "bits": len(bits),
    }


def positive(record: Record, fpr: float) -> bool:
    """Presence and the right message, each at false-positive rate `fpr`; match alone where there is no presence."""
    limit = math.log10(fpr)
    presence = record["log10_presence"]
    return record["log10_match"] <= limit and (presence is None or presence <= limit)


def summary(records: Iterable[Record]) -> Record:
    """Figures of some readings: n, rates in [0, 1], seconds, and the interval of the accuracy by photo."""
    records = list(records)
    figures: Record = {
        "n": len(records),
        "bit_accuracy": fmean(r["accuracy"] for r in records),
        "word_accuracy": fmean(r["word"] for r in records),
        "message_rate": fmean(r["message"] for r in records),
        "seconds": fmean(r["seconds"] for r in records),
        "photos": len({r["photo"] for r in records}),
        "interval": interval(records),
    }
    for fpr in FPRS:
        figures[f"tpr_{fpr:g}"] = fmean(positive(r, fpr) for r in records)
    return figures


def public_summary(records: Iterable[Record], label: str | None) -> Record | None:
    """What the public layer said in some readings; None if it was not read.

    Args:
        records: Of the readings, at the strictest rate of `FPRS`.
        label: The label of the marks.

    Returns:
        n; shares in [0, 1]: found (with or without a label), right (found, with the right label), without (the secret
        message was read, and no label; None where the message was not read); wrong: number of other labels.
    """
    records = [r for r in records if PUBLIC in r]
    if not records:
        return None
    said = [(r, r[PUBLIC]["label"] if r[PUBLIC]["found"] else None) for r in records]
    secret = all("accuracy" in r for r in records)
    return {
        "n": len(records),
        "found": fmean(r[PUBLIC]["found"] for r in records),
        "right": fmean(heard == label for _, heard in said),
        "without": fmean(positive(r, min(FPRS)) and heard is None for r, heard in said) if secret else None,
        "wrong": sum(heard not in (None, label) for _, heard in said),
    }


def present(record: Record, fpr: float) -> bool:
    """Presence at false-positive rate `fpr`; the match where there is no presence statistic."""
    value = record["log10_match"] if record["log10_presence"] is None else record["log10_presence"]
    return value <= math.log10(fpr)


def by_photo(
    records: Iterable[Record], figure: Callable[[Record], float] = lambda r: r["accuracy"]
) -> dict[str, float]:
    """Mean figure, by default the bit accuracy, of each photo."""
    groups: dict[str, list[float]] = {}
    for r in records:
        groups.setdefault(r["photo"], []).append(figure(r))
    return {photo: fmean(values) for photo, values in groups.items()}


def bootstrap(
    values: Sequence, figure: Callable[[np.ndarray], float] = lambda sample: float(sample.mean())
) -> tuple[float, float]:
    """The 95 % interval of a figure of some photos: percentiles over drawing the photos anew.

    Args:
        values: One number, or one row of numbers, for each photo.
        figure: Of those of a draw, (n, ...) -> a number; the mean by default.

    Returns:
        Lower and upper end, the same at every call; NaN for one photo alone.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile([figure(values[draw]) for draw in draws], (2.5, 97.5))
    return float(low), float(high)


def interval(records: Iterable[Record]) -> float:
    """Half width of the 95 % interval of the mean bit accuracy, photos being the independent draws."""
    means = list(by_photo(records).values())
    return NORMAL_95 * stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan


def worst(records: Iterable[Record], count: int = 5) -> list[tuple[str, float]]:
    """The photos with the lowest mean bit accuracy."""
    return sorted(by_photo(records).items(), key=lambda item: item[1])[:count]
