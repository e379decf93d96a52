"""``onrw lookup``: what an id stands for, and which of the registered ids a picture carries."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_fpr, add_key, expand, json_line, load_key, p_value, run_batch, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..detection import Reading
    from ..identification import Identified
    from ..keys import Key
    from ..message import Decoded
    from ..registry import Entry, Registry

__all__ = ["Known", "add_arguments", "known", "line", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("id", nargs="?", metavar="HEX", help="id to look up (default: list all)")
    what.add_argument(
        "--identify",
        nargs="+",
        metavar="IN",
        help="photos, or folders of them: which of the registered ids each carries, even where its message is damaged",
    )
    parser.add_argument("--registry", metavar="FILE", required=True, help="registry that `onrw embed` wrote")
    add_key(parser)
    add_fpr(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    from ..registry import Registry

    registry = Registry(arguments.registry)
    if arguments.identify:
        return _identify(arguments, registry)
    entries = registry.entries() if arguments.id is None else registry.lookup(arguments.id)
    for entry in entries:
        json_line(**asdict(entry)) if arguments.json else say(line(entry))
    if not entries and not arguments.json:
        say(f"{arguments.registry}: " + ("empty" if arguments.id is None else f"nothing under {arguments.id}"))
    return 0


def _identify(arguments: argparse.Namespace, registry: Registry) -> int:
    key = load_key(arguments.key)
    files = expand(arguments.identify)

    from .. import images
    from ..extractors.keyed import KeyedExtractor
    from ..message import Decoded, decode

    extractor = KeyedExtractor(key)

    def look(file: Path) -> None:
        image = images.load(file).rgb
        reading = extractor.read(image, fpr=arguments.fpr)
        message = decode(reading.logits, key) if reading.detected else Decoded()
        found = known(registry, message, reading, image, key, arguments.fpr)
        if arguments.json:
            json_line(input=str(file), id=found.id, **found.fields())
        else:
            say(f"{file}: " + (f"id {found.id}" if found.id else "nothing found"))
            for text in found.lines(registry):
                say(f"  {text}")

    return run_batch(files, look, name=lambda file: file)


@dataclass(frozen=True)
class Known:
    """What a registry knows of a reading.

    Attributes:
        id: Of the message, or the most likely registered one where no message can be read; None without either.
        entries: What is noted under it.
        identified: How sure that is, where the id is not from the message.
        similar: Where there is no id: (different bits, entry) of pictures that look alike, which proves nothing.
    """

    id: str | None = None
    entries: list[Entry] = field(default_factory=list)
    identified: Identified | None = None
    similar: list[tuple[int, Entry]] = field(default_factory=list)

    def fields(self) -> dict:
        """For JSON."""
        return {
            "registered": [asdict(entry) for entry in self.entries],
            "identified": None if self.identified is None else asdict(self.identified),
            "similar": [{"distance": distance} | asdict(entry) for distance, entry in self.similar],
        }

    def lines(self, registry: Registry) -> list[str]:
        """For people."""
        lines = []
        if self.identified is not None:
            one = self.identified
            lines.append(
                f"most likely id {one.id} of {one.among} registered ({p_value(one.log10_p)}, "
                f"{one.bit_accuracy:.1%} of its bits); its message cannot be read"
            )
        elif self.id and not self.entries:
            lines.append(f"not in {registry.path}")
        lines += [line(entry) for entry in self.entries]
        lines += [f"looks like (no proof, {n} of 64 bits differ): {line(entry)}" for n, entry in self.similar]
        return lines


def known(
    registry: Registry, message: Decoded, reading: Reading | Mapping[int, Tensor], image: Tensor, key: Key, fpr: float
) -> Known:
    """What a registry knows of a reading.

    Args:
        registry: The registry.
        message: What the reading says.
        reading: A keyed reading; of others' decoders number of bits -> soft bits.
        image: The picture, (3, H, W).
        key: Key of the message.
        fpr: Largest rate of false alarms of an id without a message, all registered ids taken together.
    """
    from ..identification import identify, soft_readings, word_size
    from ..registry import perceptual_hash

    if message.id:
        return Known(message.id, registry.lookup(message.id))
    if message.kind:
        return Known()
    ids = {entry.id for entry in registry.entries()}
    if not isinstance(reading, Mapping):
        reading = soft_readings(reading, key, {word_size(id) for id in ids})
    best = identify(reading, ids, key)
    if best is not None and best.log10_p <= math.log10(fpr):
        return Known(best.id, registry.lookup(best.id), best)
    return Known(similar=registry.similar(perceptual_hash(image)))


def line(entry: Entry) -> str:
    """An entry for people."""
    when = datetime.fromtimestamp(entry.time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"{entry.id}  {when}  {entry.note or '(no note)'}  file {entry.file_hash[:16] or '-'}"
