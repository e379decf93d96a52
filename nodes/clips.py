"""Batches of images that are the frames of one clip: the widget, the marking, and the frames that are read together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core import clip
from ..onrw_core.extractors.base import AlreadyMarkedError
from ..onrw_core.payload.message import Message
from ..onrw_core.pipeline import Marked
from ..onrw_core.stages.noise_optimisation import Settings
from .adapter import Progress, family_of, run
from .marking import Models, latent_shape
from .schemas import advanced
from .sockets import Reader

__all__ = ["ONE_CLIP", "SEPARATE", "MarkedClip", "frames", "mark_clip", "spread"]

SEPARATE, ONE_CLIP = "separate images", "one clip"
MOST = 8  # frames of a clip that are read together


def frames() -> io.Input:
    """Whether a batch is the frames of a clip."""
    return advanced(
        io.Combo.Input,
        "frames",
        options=[SEPARATE, ONE_CLIP],
        default=SEPARATE,
        optional=True,
        tooltip="What a batch is. one clip: the frames of a video, with one watermark that moves with the scene and "
        "does not flicker; they are read together. separate images: each image has its own.",
    )


def spread(images: Tensor) -> Tensor:
    """At most `MOST` of the frames (F, 3, H, W) of a clip, at even distances."""
    count = len(images)
    if count <= MOST:
        return images
    return images[[(2 * i + 1) * count // (2 * MOST) for i in range(MOST)]]


@dataclass(frozen=True)
class MarkedClip:
    """The frames of a marked clip.

    Attributes:
        images: (F, 3, H, W), on the CPU.
        worst: The marked frame of the least quality.
    """

    images: Tensor
    worst: Marked


def mark_clip(
    models: Models,
    originals: Tensor,
    reader: Reader,
    message: Message,
    settings: Settings,
    size: int,
    mask: Tensor | None,
    generator: torch.Generator,
    progress: Progress,
) -> MarkedClip | None:
    """Mark the frames (F, 3, H, W) of a clip; None where the first carries a watermark of the same key already.

    The other arguments are those of `marking.mark`. Each frame but the first is one step of the progress bar.
    """
    reads = reader.for_message(message)
    settings = settings.suited_to(family_of(models.model.model).distilled)
    start = progress.done

    def work(core_model, autoencoder):
        images: list[Tensor] = []
        worst: Marked | None = None
        marking = clip.embed(
            (frame.to(core_model.device) for frame in originals),
            core_model,
            autoencoder,
            reads,
            message.bits,
            positive=models.positive,
            null=models.null,
            settings=settings,
            generator=generator,
            size=size,
            mask=mask,
            on_state=lambda state: progress.advance(
                state.image, start + settings.iterations * state.iteration // state.total
            ),
        )
        for number, marked in enumerate(marking):
            images.append(marked.image.cpu())
            if worst is None or marked.judgement.quality < worst.judgement.quality:
                worst = marked
            progress.advance(marked.image[None], start + settings.iterations + number)
        assert worst is not None, "a clip has a frame"
        return MarkedClip(torch.stack(images), worst)

    shape = latent_shape(models.vae, originals[0], size)
    try:
        return run(models.model, models.vae, models.positive, models.null, shape, work)
    except AlreadyMarkedError:
        return None
