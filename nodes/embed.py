"""ONRW_Embed: the whole method in one node, from IMAGE to IMAGE."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.pixels import MIN_SIDE
from ..onrw_core.payload.keys import Key
from ..onrw_core.payload.message import Message
from . import images
from .adapter import Progress, ordinary_tensors
from .card import shown, with_views
from .clips import ONE_CLIP, SEPARATE, frames, spread
from .inputs import (
    extractor,
    generator_for,
    key,
    mark_mask,
    marking_settings,
    seed,
    strength,
)
from .keys import reader_of
from .marking import (
    REMEDY,
    MarkedClip,
    Marker,
    MarkingNode,
    Models,
    labelled,
    marked_card,
    message_of,
    public_label,
    report,
    speed,
    text,
    unchanged_card,
    unchanged_report,
    working_size,
)
from .reading import read
from .schemas import schema
from .sockets import CATEGORY, MessageType, Reader, per_image
from .warning import warn_already_marked, warn_unreadable

__all__ = ["EmbedNode"]


class EmbedNode(MarkingNode):
    """Marks every image of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Embed",
            display_name="Embed Watermark (Sign Image)",
            search_aliases=["invisible watermark", "sign image", "provenance", "copyright", "mark image"],
            category=CATEGORY,
            description="Embeds an invisible watermark in images of any model, for the middle of a graph.",
            inputs=[
                io.Image.Input("image", tooltip="The images to mark, at any size."),
                text(),
                *strength(),
                speed(),
                public_label(),
                working_size(),
                seed("Seed of the random attacks. Image number n of a batch uses seed + n."),
                frames(),
                io.Model.Input(
                    "model", optional=True, tooltip="Your own model, used instead of the embedded one; needs `vae`."
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of `model`."),
                io.Conditioning.Input(
                    "prompt", optional=True, tooltip="For `model`: the prompt of the image, as the sampler gets it."
                ),
                key(),
                MessageType.Input("message", optional=True, tooltip="From Watermark Message, instead of `text`."),
                extractor(),
                mark_mask(),
            ],
            outputs=[
                io.Image.Output("marked", "marked", tooltip="The marked images."),
                io.String.Output(
                    "report",
                    "report",
                    tooltip="Quality and a reading of each marked image as JSON, one line per image or clip.",
                ),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        image: Tensor,
        text: str,
        strength: str,
        quality: float,
        preset: str,
        public_label: str,
        size: int,
        seed: int,
        frames: str = SEPARATE,
        model: ModelPatcher | None = None,
        vae: VAE | None = None,
        prompt: list | None = None,
        key: Key | None = None,
        message: tuple[Message, ...] | None = None,
        extractor: Reader | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        reader = reader_of(extractor, key)
        settings = marking_settings(preset, reader.extractor, strength=strength, quality=quality)
        settings = labelled(settings, public_label)
        models = Models.of(model, vae, prompt)
        originals = images.from_comfy(image, min_side=MIN_SIDE)
        areas = images.areas(mask, image, frames=frames == ONE_CLIP)
        if frames == ONE_CLIP:
            own = message_of(text, originals[0], reader) if message is None else per_image(message, 0, 1, "message")
            marker = Marker(models, reader, settings, size, Progress(settings.iterations + len(originals) - 1), cls)
            whole = marker.mark_clip(originals, own, areas, generator_for(seed))
            return _clip(cls, image, originals, reader, own, whole)
        marker = Marker(models, reader, settings, size, Progress(len(originals) * settings.iterations), cls)
        marked, cards, reports, unreadable, unchanged = [], [], [], [], []
        for index, original in enumerate(originals):
            if message is None:
                own = message_of(text, original, reader)
            else:
                own = per_image(message, index, len(originals), "message")
            done = marker.mark(original, own, areas[index], generator_for(seed, index))
            if done is None:
                found = read(reader, original)
                marked.append(original.cpu())
                unchanged.append(index)
                reports.append(unchanged_report(found))
                cards.append(unchanged_card(found, size_of(original)))
                continue
            marked.append(done.image.cpu())
            found = read(reader, marked[-1], own)
            if not found.reading.carries(own):
                unreadable.append(index)
            reports.append(report(done, own, found))
            cards.append(with_views(marked_card(done, own, found), original[None], marked[-1][None]))
        warn_already_marked(cls, unchanged, len(originals))
        warn_unreadable(cls, unreadable, len(originals), REMEDY, on_node=False)
        return io.NodeOutput(images.to_comfy(torch.stack(marked), image), "\n".join(reports), ui=shown(cards))


def _clip(
    node: type[io.ComfyNode],
    image: Tensor,
    originals: Tensor,
    reader: Reader,
    message: Message,
    whole: MarkedClip | None,
) -> io.NodeOutput:
    """The outputs for the frames of one clip; None for a clip that was marked already."""
    if whole is None:
        found = read(reader, spread(originals))
        warn_already_marked(node, [0], 1)
        card = unchanged_card(found, size_of(originals))
        return io.NodeOutput(image, unchanged_report(found), ui=shown([card]))
    found = read(reader, spread(whole.images), message)
    warn_unreadable(node, [] if found.reading.carries(message) else [0], 1, REMEDY, on_node=False)
    lines = f"{len(originals)} frames as one clip; the quality is that of the worst."
    card = with_views(marked_card(whole.worst, message, found, lines), originals[:1], whole.images[:1])
    return io.NodeOutput(images.to_comfy(whole.images, image), report(whole.worst, message, found), ui=shown([card]))
