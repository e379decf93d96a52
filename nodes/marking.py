"""Marking images and clips with the whole method: what ONRW_Embed and ONRW_SaveImage share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.clip import Clip
from ..onrw_core.commands.report import certainty
from ..onrw_core.extractors import LABELS
from ..onrw_core.extractors.base import NO_LABEL, AlreadyMarkedError
from ..onrw_core.extractors.base import working_size as size_or_default
from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.rounding import to_8bit
from ..onrw_core.payload.keys import redacted
from ..onrw_core.payload.message import ID_BITS, Message, bit_string, encode_text, photo_id
from ..onrw_core.pipeline import Marked, embed
from ..onrw_core.stages.noise_optimisation import Settings
from ..onrw_core.stages.working_image import padded, windows, working_image
from ..onrw_core.strict_json import to_json
from .adapter import (
    NEGATIVE,
    POSITIVE,
    ComfyAutoencoder,
    ComfyConditioning,
    ComfyModel,
    Progress,
    from_comfy,
    mini,
    run,
)
from .card import Card, reading_card
from .keys import NO_KEY, KeyUser
from .reading import Verdict
from .schemas import advanced
from .sockets import Reader
from .warning import ALREADY_MARKED, warn_weak

__all__ = [
    "REMEDY",
    "MarkedClip",
    "Marker",
    "MarkingNode",
    "Models",
    "ids_of",
    "labelled",
    "latent_shape",
    "marked_card",
    "message_of",
    "public_label",
    "report",
    "speed",
    "text",
    "unchanged_card",
    "unchanged_report",
    "working_size",
]

Result = TypeVar("Result")
REMEDY = "choose the strength strong, a shorter text, or a larger mask"
NO_LAYER = "no public layer"
CANDIDATES = 1000  # ids of an image: as many other images would have to have them

_embedded = lru_cache(maxsize=1)(mini.load)  # stays loaded


def text() -> io.Input:
    """The text of the watermark."""
    return io.String.Input(
        "text",
        default="",
        tooltip="What the watermark says: up to 10 letters, such as your name and a number. Empty: an id of its own "
        "for each image, derived from the key and the image.",
    )


def speed() -> io.Input:
    """By what images are marked."""
    return advanced(
        io.Combo.Input,
        "preset",
        options=["fast", "quick", "endure"],
        default="fast",
        tooltip="fast: through the diffusion model, then on the pixels. quick: the pixels alone, in half of the time; "
        "the watermark is as robust, and is not shaped by a model of images. endure: survives regeneration by a model "
        "(img2img) as well; slower, and more visible: the strength balanced is a quality of 70 then.",
    )


def public_label() -> io.Input:
    """The label that everybody can read."""
    return advanced(
        io.Combo.Input,
        "public_label",
        options=[*LABELS, NO_LAYER],
        default=NO_LABEL,
        tooltip="What everybody can read from the image without your key, in the terms of IPTC, such as "
        f"trainedAlgorithmicMedia for images that a model made. none: that it is marked. {NO_LAYER}: nothing, which "
        "makes the watermark harder to find after rotation.",
    )


def labelled(settings: Settings, label: str) -> Settings:
    """Settings with the choice of `public_label`."""
    return replace(settings, label=None if label == NO_LAYER else label)


def working_size() -> io.Input:
    """The size at which images are marked."""
    return advanced(
        io.Int.Input,
        "size",
        default=0,
        min=0,
        max=2048,
        step=64,
        tooltip="Working size: the shorter side, in pixels, at which an image is marked. 0: its own, from 512 up to "
        "four megapixels in all; above one with fewer iterations. The image keeps its own size; smaller is less "
        "robust.",
    )


class MarkingNode(KeyUser):
    """A node with the widget `text`, which is checked before the graph runs."""

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        try:
            return text is None or not text.strip() or bool(encode_text(text.strip(), NO_KEY))
        except ValueError as error:
            return redacted(str(error))


def message_of(text: str, image: Tensor, reader: Reader) -> Message:
    """The message of an image (3, H, W) in [0, 1]: the text, or the first of `ids_of` where it is empty."""
    sizes = reader.extractor.sizes
    if text.strip():
        return encode_text(text.strip(), reader.key, sizes[0] if len(sizes) == 1 else None)
    return next(ids_of(image, reader))


def ids_of(image: Tensor, reader: Reader) -> Iterator[Message]:
    """Ids that follow from the key and the pixels of an image (3, H, W), the first to be preferred."""
    sizes = reader.extractor.sizes
    digest = hashlib.sha256(str(tuple(image.shape)).encode() + to_8bit(image).cpu().numpy().tobytes()).hexdigest()
    for number in range(CANDIDATES):
        name = f"image {digest}" + (f" {number}" if number else "")
        yield photo_id(reader.key, name, sizes[0] if len(sizes) == 1 else ID_BITS)


@dataclass(frozen=True)
class Models:
    """The models by which images are marked.

    Attributes:
        model: MODEL.
        vae: Its VAE.
        positive: The prompt.
        null: The empty prompt; None without guidance.
    """

    model: ModelPatcher
    vae: VAE
    positive: ComfyConditioning
    null: ComfyConditioning | None

    @classmethod
    def embedded(cls) -> Models:
        """The embedded model with empty prompts."""
        model, clip, vae = _embedded()
        empty = _empty(clip)
        return cls(model, vae, from_comfy(empty, POSITIVE), from_comfy(empty, NEGATIVE))

    @classmethod
    def of(cls, model: ModelPatcher | None, vae: VAE | None, prompt: list | None) -> Models:
        """The user's own model, or the embedded one where no model is connected.

        Raises:
            ValueError: The model is connected without its VAE and a prompt, or they without it.
        """
        if model is None and vae is None and prompt is None:
            return cls.embedded()
        if model is None or vae is None or prompt is None:
            raise ValueError(
                "model: to mark with your own model, connect `model`, `vae` and `prompt`; for the embedded one, none "
                "of them"
            )
        return cls(model, vae, from_comfy(prompt, POSITIVE), None)


def _empty(clip: CLIP) -> list:
    """The conditioning of an empty prompt."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(""))


def latent_shape(vae: VAE, original: Tensor, size: int) -> tuple[int, ...]:
    """Shape of the largest latent that marking an image (3, H, W) at a working size takes, (1, C, h, w)."""
    working = working_image(original, size_or_default(size or None, *size_of(original)))
    largest = max((padded(part.cut(working)) for part in windows(*working.shape[-2:])), key=Tensor.numel)
    factor = vae.spacial_compression_decode()
    return (1, vae.latent_channels, *(side // factor for side in largest.shape[-2:]))


@dataclass(frozen=True)
class MarkedClip:
    """The frames of a marked clip.

    Attributes:
        images: (F, 3, H, W), on the CPU.
        worst: The marked frame of the least quality.
    """

    images: Tensor
    worst: Marked


@dataclass(frozen=True)
class Marker:
    """Marks the images of a batch, or the frames of a clip.

    Attributes:
        models: See there.
        reader: Extractor and key.
        settings: Settings; their number of iterations is that of steps of the progress bar for an image.
        size: Working size in pixels; 0 for the default.
        progress: Of the node.
        node: The class of the node, which shows a weak forecast.
    """

    models: Models
    reader: Reader
    settings: Settings
    size: int
    progress: Progress
    node: type[io.ComfyNode]

    def mark(
        self, original: Tensor, message: Message, mask: Tensor | None, generator: torch.Generator
    ) -> Marked | None:
        """Mark one image; None where it carries a watermark of the same key already.

        Args:
            original: (3, H, W) in [0, 1].
            message: What the watermark is to say.
            mask: (1, 1, H, W) in [0, 1], or None.
            generator: Source of all random draws.
        """

        def work(model: ComfyModel, autoencoder: ComfyAutoencoder) -> Marked:
            return self._embed(model, autoencoder, original, message, mask, generator)

        return self._run(original, work)

    def mark_clip(
        self, frames: Tensor, message: Message, areas: list[Tensor | None], generator: torch.Generator
    ) -> MarkedClip | None:
        """Mark the frames of a clip; None where the first of them carries a watermark of the same key already.

        Each frame but the first is one step of the progress bar.

        Args:
            frames: (F, 3, H, W).
            message, generator: See `mark`.
            areas: The mask of each frame; a frame of which it is all zeros stays as it is.
        """
        numbers = [number for number, area in enumerate(areas) if area is None or area.any()]
        start = numbers[0]

        def work(model: ComfyModel, autoencoder: ComfyAutoencoder) -> MarkedClip:
            first = frames[start].to(model.device)
            worst = self._embed(model, autoencoder, first, message, areas[start], generator)
            clip = Clip(first, worst, model, autoencoder, generator=generator, size=self.size or None)
            images = [*frames.cpu()]
            images[start] = worst.image.cpu()
            for number in numbers[1:]:
                marked = clip.mark(frames[number].to(model.device), areas[number])
                images[number] = marked.image.cpu()
                worst = min(worst, marked, key=lambda each: each.judgement.quality)
                self.progress.advance(marked.image[None])
            return MarkedClip(torch.stack(images), worst)

        return self._run(frames[start], work)

    def _embed(
        self,
        model: ComfyModel,
        autoencoder: ComfyAutoencoder,
        original: Tensor,
        message: Message,
        mask: Tensor | None,
        generator: torch.Generator,
    ) -> Marked:
        start, steps = self.progress.done, self.settings.iterations
        marked = embed(
            original.to(model.device),
            model,
            autoencoder,
            self.reader.for_message(message),
            message.bits,
            positive=self.models.positive,
            null=self.models.null,
            settings=self.settings,
            generator=generator,
            size=self.size or None,
            mask=mask,
            on_forecast=partial(warn_weak, self.node),
            on_state=lambda state: self.progress.advance(state.image, start + steps * state.iteration // state.total),
        )
        self.progress.advance(marked.image[None], start + steps)
        return marked

    def _run(self, original: Tensor, work: Callable[..., Result]) -> Result | None:
        """The result of work(model, autoencoder) in ComfyUI's sampling; None where the original is marked already."""
        models, end = self.models, self.progress.done + self.settings.iterations
        shape = latent_shape(models.vae, original, self.size)
        try:
            return run(models.model, models.vae, models.positive, models.null, shape, work)
        except AlreadyMarkedError:
            self.progress.advance(original[None], end)
            return None


def marked_card(marked: Marked, message: Message, found: Verdict, *lines: str) -> Card:
    """The card of a marked image: what it says, whether that was read back, and how visible it is."""
    readable = found.reading.carries(message)
    return {
        "state": "found" if readable and marked.robustness is None else "warning",
        "title": message.value if message.kind == "text" else f"{message.kind} {message.value}",
        "lines": [
            f"Read back: {certainty(found.reading.log10_p, True)}."
            if readable
            else f"It cannot be read back; {REMEDY}.",
            *([] if marked.robustness is None else [f"Weak: {marked.robustness}; {REMEDY}."]),
            f"Quality {marked.judgement.quality:.0f} of 100 (SSIMULACRA2), PSNR {marked.psnr:.1f} dB.",
            *lines,
        ],
    }


def unchanged_card(found: Verdict, size: tuple[int, int], *lines: str) -> Card:
    """The card of an image of (height, width) `size` that was marked already: what it says."""
    card = reading_card(found.reading, size, lines)
    return card | {"state": "warning", "lines": [f"{ALREADY_MARKED}; the image is unchanged.", *card["lines"]]}


def unchanged_report(found: Verdict) -> str:
    """One line of JSON: the reading of an image that was marked already."""
    return to_json({"already_marked": True, **found.report()})


def report(marked: Marked, message: Message, found: Verdict) -> str:
    """One line of JSON: quality and reading of the marked image."""
    figures = {
        "message": message.value,
        "bits": bit_string(message.bits),
        "ssimulacra2": round(marked.judgement.quality, 2),
        "worst": round(marked.judgement.worst, 2),
        "psnr": round(marked.psnr, 2),
        "psnr_image": round(marked.psnr_image, 2),
        "ssim": round(marked.ssim, 4),
        "iterations": marked.iterations,
        "seconds": round(marked.seconds, 1),
        "detected": found.reading.detected,
        "readable": found.reading.carries(message),
        "bits_after_attacks": None if marked.robustness is None else round(marked.robustness.bits, 3),
        "log10_p": round(found.reading.log10_p, 2),
        "bit_accuracy": round(found.match.bit_accuracy, 4) if found.match else None,
    }
    return to_json(figures)
