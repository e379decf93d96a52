"""What a node shows about each image: a verdict in words, and views of the image before and after.

The page draws them (web/onrw.js). A card is a dictionary of JSON values: "state" ("found", "nothing" or "warning"),
"title", "lines", and with views "before", "after" and "difference", files as ComfyUI names them.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.commands.detect import MEANINGS
from ..onrw_core.commands.report import certainty
from ..onrw_core.extractors.base import WORKING_SIZE
from ..onrw_core.extractors.reading import Detection, Pose, Reading
from . import images

__all__ = ["detection_card", "label_line", "reading_card", "shown", "with_views"]

UPRIGHT = 0.5  # degrees of rotation below which an image counts as upright
WHOLE = 0.95  # share of the marked image from which on it counts as whole
Card = dict[str, Any]


def shown(cards: list[Card], **others: Any) -> dict[str, Any]:
    """The `ui` of a node's output."""
    return {"onrw": cards, **others}


def reading_card(reading: Reading, size: tuple[int, int], lines: tuple[str, ...] = ()) -> Card:
    """The card of a reading.

    Args:
        reading: The reading.
        size: (height, width) of the image.
        lines: Further lines.
    """
    if not reading.detected:
        title, state = "Nothing found", "nothing"
        nothing = "The image has no watermark of this key."
        return {"state": state, "title": title, "lines": [nothing, certain(reading.log10_p, False), *lines]}
    message = reading.message
    if message.value is not None:
        title, state = message.value if message.kind == "text" else f"id {message.value}", "found"
    elif message.version is not None:
        title, state = "A message of a later version: update ONRW to read it", "warning"
    else:
        title, state = "Marked with this key; the message cannot be read", "warning"
    found = [certain(reading.log10_p, True), *_sentence(changes(reading.pose, size, reading.negative))]
    return {"state": state, "title": title, "lines": [*found, *lines]}


def detection_card(found: Detection, size: tuple[int, int]) -> Card:
    """The card of a public layer.

    Args:
        found: What was detected.
        size: (height, width) of the image.
    """
    if not found.found:
        nothing = "The image has no public layer of ONRW."
        return {"state": "nothing", "title": "Nothing found", "lines": [nothing, certain(found.log10_p, False)]}
    title = "An ONRW watermark" if found.label is None else f"An ONRW watermark, label {found.label}"
    lines = [label_line(found), certain(found.log10_p, True), *_sentence(changes(found.geometry, size, found.negative))]
    return {"state": "found", "title": title, "lines": [*lines, "Only its key shows whose it is."]}


def label_line(found: Detection) -> str:
    """The public label in a sentence."""
    if not found.found:
        return "No public label."
    if found.label is None:
        return "The public label cannot be read."
    return f"Public label: {MEANINGS[found.label]}."


def certain(log10_p: float, found: bool) -> str:
    """The p-value of presence in a sentence."""
    return _sentence([certainty(log10_p, found)])[0]


def _sentence(phrases: list[str]) -> list[str]:
    """Phrases as one sentence, or none."""
    return [f"{', '.join(phrases).capitalize()}."] if phrases else []


def changes(pose: Pose | None, size: tuple[int, int], negative: bool) -> list[str]:
    """What happened to an image of (height, width) `size` since it was marked.

    The share that a crop left is that of a frame of the image's own shape with a shorter side of `WORKING_SIZE`, at
    which images are marked by default.
    """
    made = ["colour negative"] if negative else []
    if pose is None:
        return made
    turned = round(pose.rotation) if abs(pose.rotation) >= 10 else round(pose.rotation, 1)
    share = min(1.0, (min(size) / pose.scale / WORKING_SIZE) ** 2)
    return [
        *made,
        *(["mirrored"] if pose.flipped else []),
        *([f"turned by {turned:g} degrees"] if abs(pose.rotation) >= UPRIGHT else []),
        *([f"cropped to {share:.0%}"] if share < WHOLE and abs(pose.rotation) < UPRIGHT else []),
        *([f"cropped to about {share:.0%}"] if share < WHOLE and abs(pose.rotation) >= UPRIGHT else []),
    ]


def with_views(card: Card, original: Tensor, marked: Tensor) -> Card:
    """A card with views of one image before and after it was marked, and of the change.

    Args:
        card: The card.
        original, marked: (1, 3, H, W) in [0, 1], of one size.
    """
    views = {"before": original, "after": marked, "difference": images.residual(marked, original)}
    return card | {name: _view(image) for name, image in views.items()}


def _view(image: Tensor) -> dict[str, str]:
    """A temporary file of an image, as the page asks for it."""
    (saved,) = ui.ImageSaveHelper.save_images(
        list(images.to_comfy(image)), "onrw/view", io.FolderType.temp, None, compress_level=1
    )
    return dict(saved)
