"""``onrw lookup``: the entries of an id in a registry, and those that belong to a reading."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .common import p_value
from .output import json_line, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..extractors.base import Extractor
    from ..extractors.keyed.identification import Identified
    from ..extractors.reading import Reading
    from ..payload.keys import Key
    from ..payload.registry import Entry, Registry

__all__ = ["COPIED", "Known", "add_arguments", "known", "line", "run"]

COPIED = "it does not look like the registered image; the watermark may have been copied from that image"
"""What is said where `Known.copied` is true."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", metavar="HEX", help="id to look up (default: list all)")
    parser.add_argument("--registry", metavar="FILE", required=True, help="registry that `onrw embed` wrote")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    from ..payload.registry import Registry

    registry = Registry(arguments.registry)
    entries = registry.entries() if arguments.id is None else registry.lookup(arguments.id)
    for entry in entries:
        json_line(**_fields(entry)) if arguments.json else say(line(entry))
    if not entries and not arguments.json:
        say(f"{arguments.registry}: " + ("empty" if arguments.id is None else f"nothing under {arguments.id}"))
    return 0


@dataclass(frozen=True)
class Known:
    """The entries of a registry that belong to a reading.

    Attributes:
        registry: File of the registry.
        id: Id of the message, or the most likely registered id where no message can be read; None without either.
        entries: Entries of the id.
        identified: Its statistics, where the id is not from the message.
        similar: Without an id: (different bits, entry) of images that look alike, which is no proof.
        copied: See `registry.copied`.
    """

    registry: Path
    id: str | None = None
    entries: list[Entry] = field(default_factory=list)
    identified: Identified | None = None
    similar: list[tuple[int, Entry]] = field(default_factory=list)
    copied: bool | None = None

    def fields(self) -> dict:
        """Fields of a JSON line."""
        return {
            "registered": [_fields(entry) for entry in self.entries],
            "identified": None if self.identified is None else asdict(self.identified),
            "similar": [{"distance": distance} | _fields(entry) for distance, entry in self.similar],
            "copied": self.copied,
        }

    def lines(self) -> list[str]:
        """Lines of text."""
        lines = []
        if self.identified is not None:
            best = self.identified
            lines.append(
                f"most likely id {best.id} of {best.among} registered ({p_value(best.log10_p)}, "
                f"{best.bit_accuracy:.1%} of its bits); its message cannot be read"
            )
        elif self.id and not self.entries:
            lines.append(f"not in {self.registry}")
        lines += [line(entry) for entry in self.entries]
        lines += [f"looks like (no proof, {n} of 64 bits differ): {line(entry)}" for n, entry in self.similar]
        return lines


def known(registry: Registry, extractor: Extractor, reading: Reading, image: Tensor, key: Key, fpr: float) -> Known:
    """Look up a reading in a registry.

    Args:
        registry: The registry.
        extractor: The extractor that made the reading.
        reading: The reading.
        image: The image, (3, H, W).
        key: Key of the message.
        fpr: Largest false-positive rate of an id without a message, over all registered ids together.
    """
    from ..extractors.keyed.identification import identify, word_size
    from ..payload.registry import copied, perceptual_hash

    if reading.message.id:
        entries = registry.lookup(reading.message.id)
        return Known(registry.path, reading.message.id, entries, copied=copied(entries, reading.thumbnail(image)))
    if reading.message.kind:
        return Known(registry.path)
    ids = {entry.id for entry in registry.entries()}
    best = identify(extractor.guesses(reading, {word_size(id) for id in ids}), ids, key)
    if best is not None and best.log10_p <= math.log10(fpr):
        entries = registry.lookup(best.id)
        return Known(registry.path, best.id, entries, best, copied=copied(entries, reading.thumbnail(image)))
    return Known(registry.path, similar=registry.similar(perceptual_hash(image)))


def _fields(entry: Entry) -> dict:
    """The fields of an entry for JSON; its thumbnail is for the program alone."""
    return {name: value for name, value in asdict(entry).items() if name != "thumbnail"}


def line(entry: Entry) -> str:
    """An entry as a line of text."""
    when = datetime.fromtimestamp(entry.time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"{entry.id}  {when}  {entry.note or '(no note)'}  file {entry.file_hash[:16] or '-'}"
