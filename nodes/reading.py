"""Reading a mark from one picture, by the keyed extractor or by a decoder of others, in the same terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..onrw_core.detection import Reading, match_log10_p
from ..onrw_core.extractors.keyed import KeyedExtractor
from ..onrw_core.geometry import Geometry, resample
from ..onrw_core.message import ID_BITS, Decoded, Message, decode, false_accept
from .sockets import ExtractorChoice

__all__ = ["Found", "read", "straightened"]

LARGEST_SIDE = 4096  # of a picture set straight


@dataclass(frozen=True)
class Found:
    """What one picture says.

    Attributes:
        detected: Whether a mark is present at the wanted false-positive rate.
        log10_p: Base-10 logarithm of the presence p-value.
        bits: (k,) of 0/1, the best guess.
        decoded: The message in the bits, if its check holds.
        bit_accuracy: Share of the expected bits that were read; NaN without an expectation.
        match_log10_p: Base-10 logarithm of the chance of so many equal bits; NaN without an expectation.
        match: Whether that chance is below the false-positive rate.
        reading: The keyed extractor's reading, with the geometry; None for others' decoders.
    """

    detected: bool
    log10_p: float
    bits: Tensor
    decoded: Decoded
    bit_accuracy: float
    match_log10_p: float
    match: bool
    reading: Reading | None

    def report(self) -> dict:
        """JSON values of everything."""
        entry = {
            "detected": self.detected,
            "log10_p": round(self.log10_p, 2),
            "bits": "".join(map(str, self.bits.tolist())),
            "text": self.decoded.text,
            "id": self.decoded.id,
        }
        if not math.isnan(self.bit_accuracy):
            entry["match"] = {
                "bit_accuracy": round(self.bit_accuracy, 4),
                "log10_p": round(self.match_log10_p, 2),
                "match": self.match,
            }
        if self.reading is not None:
            entry["geometry"] = {
                "rotation": round(self.reading.rotation, 3),
                "scale": round(self.reading.scale, 5),
                "shift": [round(value, 2) for value in self.reading.shift],
                "flipped": self.reading.flipped,
            }
            entry["seconds"] = round(self.reading.seconds, 3)
        return entry

    def text(self) -> str:
        """One line for people."""
        chance = f"p = {10**self.log10_p:.2g}" if self.log10_p > -3 else f"p = 1e{self.log10_p:.0f}"
        if not self.detected:
            return f"nothing found ({chance})"
        if self.decoded.kind is not None:
            return self.decoded.value
        if self.decoded.version is not None:
            return "a message of a later version; update ONRW to read it"
        return f"a mark of this key without a message ({chance})"


@torch.no_grad()
def read(choice: ExtractorChoice, image: Tensor, expected: Message | None = None, fpr: float = 1e-6) -> Found:
    """Read one picture.

    Args:
        choice: Who reads.
        image: (3, H, W) in [0, 1].
        expected: The message to compare with.
        fpr: False-positive rate of presence, and of the match.
    """
    extractor = choice.reader(ID_BITS if expected is None else len(expected.bits))
    if isinstance(extractor, KeyedExtractor):
        reading = extractor.read(image, fpr=fpr)
        detected, log10_p, bits, decoded = reading.detected, reading.log10_p, reading.bits, Decoded()
        if detected:
            decoded = decode(reading.logits, choice.key)
        else:  # the best guess at a mark of the expected length
            bits = (extractor.guess(reading) > 0).long()
    else:
        reading, logits = None, extractor.logits(image[None])[0]
        bits, decoded = (logits > 0).long(), decode(logits, choice.key)
        # Others' decoders have no sync pattern: presence is the check of the message alone.
        log10_p = 0.0 if decoded.kind is None else math.log10(false_accept(len(bits)))
        detected = log10_p <= math.log10(fpr)
    accuracy = chance = math.nan
    if expected is not None and len(bits) == len(expected.bits):
        accuracy = (bits == expected.bits).double().mean().item()
        chance = match_log10_p(bits, expected.bits)
    elif expected is not None:
        accuracy, chance = 0.5, 0.0  # a mark of another length says nothing about these bits
    return Found(detected, log10_p, bits, decoded, accuracy, chance, chance <= math.log10(fpr), reading)


def straightened(image: Tensor, found: Found) -> Tensor:
    """The picture (1, 3, H, W) turned and mirrored back to how it was marked, in its own resolution; as it is where
    nothing was found.
    """
    if not found.detected or found.reading is None:
        return image[None]
    geometry = found.reading.geometry
    height, width = image.shape[-2:]
    corners = geometry.apply(torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]))
    low, high = corners.min(0).values, corners.max(0).values
    scale = min(found.reading.scale, LARGEST_SIDE / float((high - low).max()))  # no detail is lost or made up
    size = ((high - low) * scale).round().clamp(min=1).long()
    back = geometry.inverse() @ Geometry.shift(float(low[0]), float(low[1])) @ Geometry.scale(1 / scale)
    return resample(image[None], back, (int(size[1]), int(size[0])), "bicubic").clamp(0, 1)
