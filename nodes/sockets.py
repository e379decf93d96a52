"""The socket types of the pack, and the values that they pass on.

Messages, inversions and watermarks are passed as tuples with one entry per image of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.extractors.base import Extractor
from ..onrw_core.payload.keys import Key
from ..onrw_core.payload.message import Message
from ..onrw_core.stages.noise_optimisation import Watermark

__all__ = [
    "CATEGORY",
    "STAGES",
    "ExtractorType",
    "InversionType",
    "KeyType",
    "MessageType",
    "ReadableWatermark",
    "Reader",
    "WatermarkType",
    "per_image",
]

CATEGORY = "ONRW"
STAGES = "ONRW/stages"

KeyType = io.Custom("ONRW_KEY")  # Key
MessageType = io.Custom("ONRW_MESSAGE")  # tuple[Message, ...]
ExtractorType = io.Custom("ONRW_EXTRACTOR")  # Reader
InversionType = io.Custom("ONRW_INVERSION")  # tuple[Inversion, ...]
WatermarkType = io.Custom("ONRW_WATERMARK")  # tuple[ReadableWatermark, ...]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Reader:
    """An extractor, and the key with which its messages are read.

    Attributes:
        extractor: The extractor, on the CPU.
        key: The secret key.
    """

    extractor: Extractor
    key: Key

    def for_message(self, message: Message) -> Extractor:
        """The extractor for watermarks of the message's number of bits.

        Raises:
            ValueError: If the extractor does not read that number of bits.
        """
        count, sizes = len(message.bits), self.extractor.sizes
        if count not in sizes:
            known = ", ".join(map(str, sizes))
            raise ValueError(
                f"message: it has {count} bits and the extractor {self.extractor.name!r} reads {known}; set num_bits "
                f"of the node Watermark Message to {known}"
            )
        return self.extractor.for_bits(count)


@dataclass(frozen=True, kw_only=True)
class ReadableWatermark(Watermark):
    """A watermark, and what the marked image is read with.

    Attributes:
        reader: Extractor and key.
        message: What the marked image is to say.
        balanced: The SSIMULACRA2 score of the strength balanced: that of the preset.
    """

    reader: Reader
    message: Message
    balanced: float

    def readable(self, image: Tensor) -> bool:
        """Whether the message can be read from a marked image (1, 3, H, W) in [0, 1]."""
        reading = self.reader.for_message(self.message).read(image[0].cpu(), self.reader.key)
        return reading.carries(self.message)


def per_image(items: tuple[Item, ...], index: int, count: int, name: str) -> Item:
    """The item that belongs to image `index` of `count`; a single item belongs to all images.

    Raises:
        ValueError: If the number of items is neither 1 nor `count`.
    """
    if len(items) == 1:
        return items[0]
    if len(items) != count:
        raise ValueError(
            f"{name}: there are {len(items)} for {count} images; connect a single one, or one for each image"
        )
    return items[index]
