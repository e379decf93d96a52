"""The pack's own socket types, and what travels through them.

Records travel as tuples with one entry per image of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from comfy_api.latest import io

from ..onrw_core.extractors.base import Extractor
from ..onrw_core.extractors.loading import load_extractor
from ..onrw_core.keys import Key

__all__ = [
    "CATEGORY",
    "ExtractorChoice",
    "ExtractorType",
    "InversionType",
    "KeyType",
    "MessageType",
    "WatermarkType",
    "per_image",
]

CATEGORY = "ONRW"

KeyType = io.Custom("ONRW_KEY")  # Key
MessageType = io.Custom("ONRW_MESSAGE")  # tuple[Message, ...]
ExtractorType = io.Custom("ONRW_EXTRACTOR")  # ExtractorChoice
InversionType = io.Custom("ONRW_INVERSION")  # tuple[Inversion, ...]
WatermarkType = io.Custom("ONRW_WATERMARK")  # tuple[Watermark, ...]

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExtractorChoice:
    """An extractor before it is known how many bits the message has.

    Attributes:
        source: "keyed", another built-in name, or a file.
        key: The secret key; decoders of others ignore it for the bits, but messages are read with it.
        allow_torchscript: Whether the program in a TorchScript file may run.
    """

    source: str | Path
    key: Key
    allow_torchscript: bool = False

    @property
    def keyed(self) -> bool:
        """Whether it is this library's own."""
        return self.source == "keyed"

    def reader(self, num_bits: int) -> Extractor:
        """The extractor; the keyed one for marks of so many bits, where that matters."""
        return load_extractor(self.source, self.key, num_bits, self.allow_torchscript)

    def load(self, num_bits: int) -> Extractor:
        """The extractor for a message of that many bits.

        Raises:
            ValueError: If the decoder has a fixed number of bits, and another one.
        """
        extractor = self.reader(num_bits)
        if extractor.num_bits != num_bits:
            raise ValueError(
                f"message: it has {num_bits} bits and the extractor {extractor.name!r} reads {extractor.num_bits}; set "
                f"num_bits of the node ONRW Message to {extractor.num_bits}"
            )
        return extractor


def per_image(items: tuple[Item, ...], index: int, count: int, name: str) -> Item:
    """The item that belongs to image `index` of `count`; a single one belongs to all.

    Raises:
        ValueError: If there are neither one nor `count` items.
    """
    if len(items) == 1:
        return items[0]
    if len(items) != count:
        raise ValueError(f"{name}: {len(items)} of them for {count} images; give one, or one per image")
    return items[index]
