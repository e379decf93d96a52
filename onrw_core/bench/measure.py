"""Marking, attacking and reading photos with several systems, with all results cached."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attacks import attack, parse, suite
from ..commands.output import say
from ..extractors.keyed.pilot_search import detect
from ..mini import Mini
from ..payload.keys import Key
from .cache import Cache, generator_for
from .marking import marked
from .photos import Photo
from .regeneration import PURIFY_SIGMAS, regenerations
from .report import PLAIN, progress
from .statistics import PUBLIC, judge
from .systems import Onrw, System

__all__ = ["Measured", "attacks_of", "labels_read", "measure", "tell"]

CHOSEN = "chosen"  # attacks named one by one
RANDOM = "onrw12-random"  # the suite that draws its strengths

Record = dict[str, Any]
Attacks = Callable[[str], Iterator[tuple[str, str, Any]]]
Measured = tuple[dict[str, list[Record]], dict[str, list[Record]]]


def tell(text: str) -> None:
    """Print a line of progress to stderr; the report goes to stdout."""
    say(text, sys.stderr)


def attacks_of(
    suites: Sequence[str],
    seed: int,
    mini: Mini | None,
    device: str,
    sigmas: Sequence[float] | None = None,
    chosen: Sequence[str] = (),
) -> Attacks:
    """A function: photo name -> (suite, label, attack); random strengths differ from photo to photo.

    Args:
        suites: Their names.
        seed: Of the random strengths.
        mini: Of the suite "regeneration".
        device: Where it is.
        sigmas: Strengths of its purification.
        chosen: Attacks in addition to those of the suites, as `attacks.parse` reads them.

    Raises:
        ValueError: One of the chosen is no attack.
    """
    others = [(CHOSEN, str(a), a) for a in map(parse, chosen)]
    models = regenerations(mini, device, sigmas or PURIFY_SIGMAS, tell) if "regeneration" in suites else []

    def of(photo: str) -> Iterator[tuple[str, str, Any]]:
        yield PLAIN, PLAIN, attack("identity")
        for name in suites:
            if name == "regeneration":
                yield from ((name, str(a), a) for a in models)
            elif name == RANDOM:
                drawn = suite(name, generator_for(seed, name, photo))
                yield from ((name, f"random {a.name}", a) for a in drawn)
            else:
                yield from ((name, str(a), a) for a in suite(name))
        yield from others

    return of


def measure(
    systems: Sequence[System],
    caches: dict[str, Cache],
    photos: Sequence[Photo],
    attacks: Attacks,
    key: Key,
    seed: int,
    extra: Sequence[Photo] = (),
    public: bool = False,
) -> Measured:
    """Mark every photo with every system, and read it after every attack.

    Args:
        systems: What marks and reads.
        caches: By name of system.
        photos: At the systems' working size.
        attacks: From `attacks_of`.
        key: Of the messages.
        seed: Of the benchmark.
        extra: Photos that this library alone marks, at their own size.
        public: Read the public layer of this library's marks as well.

    Returns:
        Records of the marked photos and of the readings, each by name of system.
    """
    marks: dict[str, list[Record]] = {s.name: [] for s in systems}
    readings: dict[str, list[Record]] = {s.name: [] for s in systems}
    work = [(photo, s) for photo in photos for s in systems]
    work += [(photo, replace(s, size=None)) for photo in extra for s in systems if isinstance(s, Onrw)]
    for number, (photo, s) in enumerate(work, 1):
        note, taken = _measure(s, caches[s.name], photo, attacks, key, seed, public and isinstance(s, Onrw))
        marks[s.name].append(note)
        readings[s.name] += taken
        tell(progress(f"{number}/{len(work)}", s, photo, note, taken))
    return marks, readings


def _measure(
    system: System, cache: Cache, photo: Photo, attacks: Attacks, key: Key, seed: int, public: bool
) -> tuple[Record, list[Record]]:
    """Mark one photo and read it after every attack, as far as the cache does not have it."""
    image, note = marked(system, cache, photo, key, seed)
    expected = torch.tensor([int(b) for b in note["bits"]])
    records = []
    for suite_name, label, action in attacks(photo.name):
        text = f"{suite_name}: {action}"
        record = cache.reading(note["mark"], text)
        if record is None or (public and PUBLIC not in record):
            attacked = action(image[None], generator_for(seed, photo.name, text)).images
            if record is None:
                outcome = system.read(attacked[0], tuple(photo.image.shape[-2:]))
                record = {
                    "photo": photo.name,
                    "mark": note["mark"],
                    "attack": text,
                    "suite": suite_name,
                    "label": label,
                }
                record |= judge(outcome, expected, key, note["id"])
            if public:
                record[PUBLIC] = _public(attacked)
            cache.keep_reading(record)
        records.append(record)
    return note, records


def _public(image: Tensor) -> Record:
    """What the public layer of an image (1, 3, H, W) says."""
    found = detect(image)
    return {"found": found.found, "label": found.label, "log10_p": round(found.log10_p, 2)}


def labels_read(system: Onrw, cache: Cache, photos: Sequence[Photo], key: Key, seed: int, draws: int) -> list[Record]:
    """Records of the public layer alone after further draws of onrw12-random: many readings, for what is rare.

    Args:
        system: What marks.
        cache: Of the system.
        photos: At its working size.
        key: Of the messages.
        seed: Of the benchmark.
        draws: Of the suite, for each photo.
    """
    records = []
    for number, photo in enumerate(photos, 1):
        image, note = marked(system, cache, photo, key, seed)
        for draw in range(1, draws + 1):
            for action in suite(RANDOM, generator_for(seed, f"{RANDOM} {draw}", photo.name)):
                text = f"label, draw {draw}: {action}"
                record = cache.reading(note["mark"], text)
                if record is None:
                    said = _public(action(image[None], generator_for(seed, photo.name, text)).images)
                    record = {"photo": photo.name, "mark": note["mark"], "attack": text, PUBLIC: said}
                    cache.keep_reading(record)
                records.append(record)
        tell(f"{number}/{len(photos)} {photo.name}: labels")
    return records
