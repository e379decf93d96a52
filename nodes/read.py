"""ONRW_Read: read and verify watermarks, without originals."""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.api import detect
from ..onrw_core.commands.lookup import COPIED
from ..onrw_core.extractors.reading import Reading
from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.pixels import MIN_SIDE
from ..onrw_core.payload.keys import Key
from ..onrw_core.payload.message import Message
from ..onrw_core.payload.registry import copied
from ..onrw_core.strict_json import to_json
from . import images
from .adapter import Progress, ordinary_tensors
from .card import label_line, reading_card, shown, with_views
from .clips import ONE_CLIP, SEPARATE, frames, spread
from .inputs import extractor, key
from .keys import KeyUser, reader_of
from .reading import Verdict, read, rectified
from .save import registry
from .schemas import advanced, schema
from .sockets import CATEGORY, MessageType, Reader, per_image

__all__ = ["ReadNode"]

TARGET_FPR = 1e-6
STEPS = 100  # of the progress bar for an image


class ReadNode(KeyUser):
    """Reads the watermark of every image of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Read",
            display_name="Read Watermark (Verify Provenance)",
            search_aliases=["invisible watermark", "verify image", "extract watermark", "provenance", "copyright"],
            category=CATEGORY,
            description="Reads the invisible watermark of an image and says how sure it is; no original and no model "
            "are needed.",
            inputs=[
                io.Image.Input("image", tooltip="The received image, which may be cropped, rotated, compressed, ..."),
                io.Image.Input(
                    "original",
                    optional=True,
                    tooltip="The image before it was marked, to compare on the node; it is not used for reading.",
                ),
                key(),
                MessageType.Input(
                    "message", optional=True, tooltip="The expected message; needed for match and bit accuracy."
                ),
                extractor(),
                advanced(
                    io.Float.Input,
                    "target_fpr",
                    default=TARGET_FPR,
                    min=1e-12,
                    max=0.1,
                    step=1e-7,
                    round=False,
                    tooltip="False-positive rate: the share of unmarked images that may be reported as marked.",
                ),
                frames(),
                advanced(
                    io.Boolean.Input,
                    "deep",
                    default=False,
                    optional=True,
                    tooltip="If nothing is found, search rotations of +-10 degrees and scales of .7 to 1.4 by the key "
                    "alone, for images whose public layer is gone; takes minutes.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "text", "text", tooltip="The message, or that nothing was found; one line per image or clip."
                ),
                io.Boolean.Output(
                    "detected", "detected", tooltip="Whether every image carries a watermark of this key."
                ),
                io.Float.Output(
                    "log10_p",
                    "log10_p",
                    tooltip="log10 of the p-value: how likely an unmarked image gives such a reading.",
                ),
                io.Boolean.Output(
                    "match", "match", tooltip="Whether the bits of every image match the expected message."
                ),
                io.Float.Output(
                    "bit_accuracy",
                    "bit_accuracy",
                    tooltip="Share of bits that agree with the expected message; 0 without a message.",
                ),
                io.String.Output("report", "report", tooltip="The readings as JSON, one line per image or clip."),
                io.Image.Output("straight", "straight", tooltip="The images with rotation and mirroring undone."),
            ],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        image: Tensor,
        target_fpr: float,
        frames: str = SEPARATE,
        deep: bool = False,
        original: Tensor | None = None,
        key: Key | None = None,
        message: tuple[Message, ...] | None = None,
        extractor: Reader | None = None,
    ) -> io.NodeOutput:
        reader = reader_of(extractor, key)
        received = images.from_comfy(image, min_side=MIN_SIDE)
        before = None if original is None else images.from_comfy(original, "original")
        clips = [received] if frames == ONE_CLIP else [each[None] for each in received]
        progress = Progress(STEPS * len(clips))
        results, straight, cards = [], [], []
        for index, clip in enumerate(clips):
            expected = None if message is None else per_image(message, index, len(clips), "message")
            each = clip[0]
            searching = partial(_search, progress, STEPS * index) if deep else None
            found = read(reader, each if len(clip) == 1 else spread(clip), expected, target_fpr, searching)
            results.append(found)
            straight += [rectified(frame, found.reading) for frame in clip]
            lines = (*_matched(found), label_line(detect(each)), *_registered(found.reading, each))
            card = reading_card(found.reading, size_of(each), lines)
            if before is not None:
                other = before[:1] if len(clip) > 1 else per_image(before.split(1), index, len(clips), "original")
                card = with_views(card, *_comparable(other, each[None], straight[-len(clip)]))
            cards.append(card)
            progress.advance(to=STEPS * (index + 1))
        text = "\n".join(found.text() for found in results)
        return io.NodeOutput(
            text,
            all(found.reading.detected for found in results),
            max(found.reading.log10_p for found in results),
            all(found.matches for found in results),
            min((found.match.bit_accuracy for found in results if found.match), default=0.0),
            "\n".join(to_json(found.report()) for found in results),
            images.to_comfy(_padded(straight)),
            ui=shown(cards, text=(text,)),
        )


def _search(progress: Progress, before: int, done: float) -> None:
    """Advance by the done share of a deep search."""
    progress.advance(to=before + round(STEPS * done))


def _matched(found: Verdict) -> tuple[str, ...]:
    """Whether the expected message was read."""
    if found.match is None:
        return ()
    verdict = "It is the expected message" if found.matches else "It is not the expected message"
    return (f"{verdict} ({found.match.bit_accuracy:.0%} of its bits).",)


def _registered(reading: Reading, image: Tensor) -> tuple[str, ...]:
    """What the registry of this installation says of an id."""
    ids = registry()
    if ids is None or reading.message.id is None:
        return ()
    entries = ids.lookup(reading.message.id)
    dates = [time.strftime("%Y-%m-%d", time.gmtime(entry.time)) for entry in entries]
    lines = [f"Registry: {entry.note or 'no note'}, {date}." for entry, date in zip(entries, dates, strict=True)]
    if copied(entries, reading.thumbnail(image)):
        lines.append(f"{COPIED[0].upper()}{COPIED[1:]}.")
    return tuple(lines)


def _comparable(original: Tensor, received: Tensor, straight: Tensor) -> tuple[Tensor, Tensor]:
    """An original and the received image at one size; set straight where the size differs."""
    after = received if received.shape == original.shape else straight
    if after.shape != original.shape:
        original = F.interpolate(original, size_of(after), mode="bicubic", antialias=True).clamp(0, 1)
    return original, after


def _padded(parts: list[Tensor]) -> Tensor:
    """Images (1, 3, h, w) of several sizes as one batch, padded with black at the right and the bottom."""
    height = max(part.shape[-2] for part in parts)
    width = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])) for part in parts])
