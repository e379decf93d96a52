"""Readings: the bits that an extractor read from an image, with p-values.

There are two separate statistics. **Presence** (message unknown) is `Reading.log10_p`. The keyed extractor tests for
its patterns (`keyed.statistics`). Third-party decoders have no sync pattern and give bits for any image, so presence is
tested by the message alone, whose codewords are rare and keyed. The probability that n random bits lie
within e bit errors of one of M messages is

    P <= M 2^-n sum_{i <= e} binomial(n, i),   and at most the `false_accept` of the message's check,

so a message without bit errors is stronger evidence than a message with corrected errors.

**Match** (message given): the number of equal bits is binomial with probability 1/2. Raw bits have no check, so this
is their only test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import as_whole, check_type
from ..imaging.geometry import Geometry
from ..imaging.pixels import as_rgb
from ..imaging.thumbnail import Thumbnail, thumbnail
from ..payload.message import Decoded, Message, as_bits, bit_string, capacity, false_accept

__all__ = ["Detection", "Match", "Pose", "Reading", "match_log10_p", "message_log10_p", "pose_of"]

TEXT_AND_ID_HEADERS = 3


class Pose(NamedTuple):
    """Position of an image relative to the marked image.

    Attributes:
        rotation: Counter-clockwise rotation of the marked image in degrees, after mirroring if `flipped`.
        scale: Size of the content relative to the marked image.
        shift: (x, y) of the upper left corner in the marked image, modulo the tile, in its pixels.
        flipped: Whether the image is mirrored.
    """

    rotation: float
    scale: float
    shift: tuple[float, float]
    flipped: bool


def pose_of(geometry: Geometry, tile: int) -> Pose:
    """The pose of an image.

    Args:
        geometry: Maps coordinates of the image to those of the marked image.
        tile: Side of a tile, pixels.
    """
    linear = geometry.matrix[:2, :2]
    determinant = float(torch.linalg.det(linear))
    flipped = determinant < 0
    # Mirrored first, then rotated: linear = flip @ turn.
    across = linear[:, 0] * torch.tensor([-1.0 if flipped else 1.0, 1.0])
    corner = geometry.apply(torch.zeros(2)) % tile
    rotation = math.degrees(math.atan2(float(across[1]), float(across[0])))
    return Pose(rotation, abs(determinant) ** -0.5, (float(corner[0]), float(corner[1])), flipped)


def _pose_fields(pose: Pose) -> dict[str, Any]:
    return {
        "rotation": round(pose.rotation, 3),
        "scale": round(pose.scale, 5),
        "shift": [round(value, 2) for value in pose.shift],
        "flipped": pose.flipped,
    }


@dataclass(frozen=True)
class Detection:
    """The public layer of an image, which is read without a key.

    Attributes:
        found: Whether a public layer is present at the requested false-positive rate.
        label: The public label, one of `LABELS`; None if nothing was found, or the label is not certain.
        version: Of the wire format; None if nothing was found.
        log10_p: log10 of the p-value, corrected for the search.
        geometry: Position of the image relative to the marked image; None if nothing was found.
        to_marked: The same as a map of coordinates, up to shifts by whole tiles.
        negative: Whether the image is a colour negative of the marked image.
        seconds: Wall time.
    """

    found: bool
    label: str | None
    version: int | None
    log10_p: float
    geometry: Pose | None
    to_marked: Geometry | None = field(default=None, repr=False)
    negative: bool = False
    seconds: float = 0.0

    def fields(self) -> dict[str, Any]:
        """The detection as values for JSON."""
        return {
            "found": self.found,
            "label": self.label,
            "version": self.version,
            "log10_p": round(self.log10_p, 2),
            "geometry": None if self.geometry is None else _pose_fields(self.geometry),
            "negative": self.negative,
            "seconds": round(self.seconds, 3),
        }


class Match(NamedTuple):
    """Agreement with a given message.

    Attributes:
        bit_accuracy: Share of equal bits.
        log10_p: log10 of the probability that random bits agree at least as well.
    """

    bit_accuracy: float
    log10_p: float


@dataclass(frozen=True)
class Reading:
    """The reading of one image.

    Attributes:
        detected: Whether a watermark of this key is present at the requested false-positive rate.
        log10_p: log10 of the p-value of presence, corrected for the search; 0 where presence cannot be tested, which is
            a third-party decoder without a key or without a message.
        logits: (k,), positive = bit 1, on the CPU; the best guess if nothing was detected.
        message: The decoded message; empty if nothing was detected or the check of the message fails.
        seconds: Wall time of the reading.
        geometry: Maps coordinates of the image to those of the key's pattern, which are those of the marked image
            moved by whole tiles; None for third-party decoders.
        pose: The same as rotation, scale, shift and flip.
        searched: Whether the blind search was needed.
        tried: Number of attempts: geometries that were compared with the patterns.
        tile: (364,) coefficients of the average tile, rectified; None for third-party decoders.
        negative: Whether the image is a colour negative of the marked image.
    """

    detected: bool
    log10_p: float
    logits: Tensor
    message: Decoded
    seconds: float
    geometry: Geometry | None = None
    pose: Pose | None = None
    searched: bool = False
    tried: int = 1
    tile: Tensor | None = field(default=None, repr=False)
    negative: bool = False

    @property
    def bits(self) -> Tensor:
        """(k,) of 0/1."""
        return (self.logits > 0).long()

    @property
    def num_bits(self) -> int:
        """k."""
        return len(self.logits)

    def thumbnail(self, image: Tensor) -> Thumbnail | None:
        """The thumbnail of the image that was read, (3, H, W) in [0, 1]; None if nothing was detected.

        Raises:
            ValueError: What `as_rgb` refuses.
        """
        image = as_rgb(image)
        if not self.detected or self.geometry is None:
            return None
        return thumbnail(1 - image if self.negative else image, self.geometry)

    def match(self, expected: Tensor) -> Match | None:
        """Compare with the bits (k,) of a given message; None if the numbers of bits differ.

        Raises:
            ValueError: `expected` is no vector of 0 and 1.
        """
        expected = as_bits(expected, "expected")
        if len(expected) != self.num_bits:
            return None
        bits = self.bits
        return Match((bits == expected).double().mean().item(), match_log10_p(bits, expected))

    def carries(self, message: Message) -> bool:
        """Whether it gives back what was marked: the same text or id, or every bit of raw ones."""
        check_type("message", message, Message)
        if self.detected and message.kind != "raw":
            return (self.message.kind, self.message.value) == (message.kind, message.value)
        # Third-party decoders, which have no pose, cannot tell the presence of raw bits, or of few.
        match = self.match(message.bits) if self.detected or self.pose is None else None
        return match is not None and match.bit_accuracy == 1

    def fields(self) -> dict[str, Any]:
        """The reading as values for JSON."""
        values: dict[str, Any] = {
            "detected": self.detected,
            "log10_p": round(self.log10_p, 2),
            "bits": bit_string(self.bits),
            "text": self.message.text,
            "id": self.message.id,
        }
        if self.pose is not None:
            values["geometry"] = _pose_fields(self.pose) | {"negative": self.negative}
        return values | {"seconds": round(self.seconds, 3)}


def message_log10_p(num_bits: int, corrected: int) -> float:
    """log10 of the probability that random bits are a message with at most `corrected` bit errors.

    Args:
        num_bits: n, one of `message.SIZES`.
        corrected: e, 0 to n.

    Raises:
        ValueError: Another n or e.
    """
    room = capacity(num_bits)
    corrected = as_whole("corrected", corrected, 0, num_bits)
    messages = 2**room.payload * (TEXT_AND_ID_HEADERS if room.utf8_bytes else 1)
    ball = sum(math.comb(num_bits, i) for i in range(corrected + 1))
    return min(math.log10(messages * ball) - num_bits * math.log10(2), math.log10(false_accept(num_bits)))


def match_log10_p(bits: Tensor, expected: Tensor) -> float:
    """log10 of the probability that random bits agree with `expected` at least as well.

    Args:
        bits: (k,) of 0/1, read.
        expected: (k,) of 0/1, given.

    Raises:
        ValueError: The numbers of bits differ, or there are others than 0 and 1.
    """
    bits, expected = as_bits(bits), as_bits(expected, "expected")
    if bits.shape != expected.shape:
        raise ValueError(f"{len(bits)} bits were read and {len(expected)} are expected; give as many as were embedded")
    equal, k = int((bits == expected).sum()), len(bits)
    return math.log10(sum(math.comb(k, n) for n in range(equal, k + 1))) - k * math.log10(2)
