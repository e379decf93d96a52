"""Reading the watermark of one image: the verdict that nodes report, and the rectified image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..onrw_core.commands.common import p_value
from ..onrw_core.extractors.base import log10_rate
from ..onrw_core.extractors.reading import Match, Reading
from ..onrw_core.imaging.geometry import Geometry, resample
from ..onrw_core.payload.message import Message
from .sockets import Reader

__all__ = ["Verdict", "read", "rectified"]

LARGEST_SIDE = 4096  # of a rectified image, pixels
OTHER_SIZE = Match(0.5, 0.0)  # a watermark of another number of bits gives no evidence about the expected bits


@dataclass(frozen=True)
class Verdict:
    """A reading, compared with the expected message.

    Attributes:
        reading: The reading.
        match: Agreement with the expected message; None without one.
        matches: Whether the p-value of that agreement is at most the false-positive rate.
    """

    reading: Reading
    match: Match | None
    matches: bool

    def report(self) -> dict:
        """The reading and the match as JSON values."""
        fields = self.reading.fields()
        if self.match is not None:
            accuracy, log10_p = self.match
            fields["match"] = {
                "bit_accuracy": round(accuracy, 4),
                "log10_p": round(log10_p, 2),
                "match": self.matches,
            }
        return fields

    def text(self) -> str:
        """One line for users: the message, or why there is none."""
        reading, message = self.reading, self.reading.message
        if not reading.detected:
            return f"nothing found ({p_value(reading.log10_p)})"
        if message.value is not None:
            return message.value
        if message.version is not None:
            return "a message of a later version; update ONRW to read it"
        return f"a watermark of this key without a message ({p_value(reading.log10_p)})"


def read(
    reader: Reader,
    image: Tensor,
    expected: Message | None = None,
    fpr: float = 1e-6,
    deep: Callable[[float], None] | None = None,
) -> Verdict:
    """Read one image, or one clip.

    Args:
        reader: Extractor and key.
        image: (3, H, W) in [0, 1]; or the frames of a clip, (F, 3, H, W).
        expected: The message to compare with.
        fpr: False-positive rate of presence, and of the match.
        deep: Search rotations and scales by the key alone as well, last, and call this with the done share.
    """
    limit, extractor = log10_rate(fpr), reader.extractor
    if expected is not None and len(expected.bits) in extractor.sizes:
        extractor = extractor.for_bits(len(expected.bits))
    reading = extractor.read(image, reader.key, fpr=fpr, deep=deep is not None, progress=deep)
    match = None if expected is None else reading.match(expected.bits) or OTHER_SIZE
    return Verdict(reading, match, match is not None and match.log10_p <= limit)


def rectified(image: Tensor, reading: Reading) -> Tensor:
    """The image (1, 3, H, W) with rotation and mirroring undone, at its own resolution; unchanged if nothing was
    found or the geometry is unknown.
    """
    if not reading.detected or reading.geometry is None or reading.pose is None:
        return image[None]
    geometry = reading.geometry
    height, width = image.shape[-2:]
    corners = geometry.apply(torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]))
    low, high = corners.min(0).values, corners.max(0).values
    scale = min(reading.pose.scale, LARGEST_SIDE / float((high - low).max()))  # no detail is lost or made up
    size = ((high - low) * scale).round().clamp(min=1).long()
    back = geometry.inverse() @ Geometry.shift(float(low[0]), float(low[1])) @ Geometry.scale(1 / scale)
    return resample(image[None], back, (int(size[1]), int(size[0])), "bicubic").clamp(0, 1)
