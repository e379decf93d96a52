"""ONRW_ConstrainedDenoise and ONRW_Compose: from the marked noise to the marked image."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.pixels import MIN_SIDE
from ..onrw_core.pipeline import Denoised, denoise_watermark
from ..onrw_core.stages.composition import compose, resized
from ..onrw_core.stages.noise_optimisation import PRESETS
from . import images
from .adapter import Progress, check_model, ordinary_tensors, prepared, run, to_latent
from .inputs import (
    AS_OPTIMISED,
    DEFAULT_PRESET,
    balanced,
    composed_outputs,
    composition,
    prompts_again,
    quality_of,
    strength,
    target_psnr,
    vae,
)
from .schemas import advanced, schema
from .sockets import STAGES, ReadableWatermark, WatermarkType, per_image
from .warning import warn_unreadable

__all__ = ["ComposeNode", "ConstrainedDenoiseNode"]

REMEDY = "lower the quality, allow a larger area, or allow Optimize Watermark Noise more iterations"
PSEUDO_MASKS = ["none", "soft", "hard"]
ATTENTION = {"replay": False, "inject": True}


class ConstrainedDenoiseNode(io.ComfyNode):
    """Denoises the marked noise and composes the result with the original."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        marked, residual = composed_outputs()
        return schema(
            node_id="ONRW_ConstrainedDenoise",
            display_name="Denoise Watermark",
            search_aliases=["denoise watermark"],
            category=STAGES,
            description="Denoises the marked noise in parallel with the original noise, and composes the difference "
            "with the original at full resolution.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the watermark was made with."),
                vae(),
                WatermarkType.Input("watermark", tooltip="From Optimize Watermark Noise."),
                io.Image.Input("image", tooltip="The original, at any size with the same aspect ratio."),
                composition("composition", AS_OPTIMISED),
                *strength("that of Optimize Watermark Noise"),
                target_psnr(),
                advanced(
                    io.Combo.Input,
                    "pseudo_mask",
                    options=[AS_OPTIMISED, *PSEUDO_MASKS],
                    default=AS_OPTIMISED,
                    tooltip="Limit the change to the objects that the prompt names, located by cross-attention. none: "
                    "everywhere. soft: with gradual edges. hard: with sharp edges.",
                ),
                advanced(
                    io.Combo.Input,
                    "attention",
                    options=[AS_OPTIMISED, *ATTENTION],
                    default=AS_OPTIMISED,
                    tooltip="inject: replace the self-attention by that of the original. replay: leave it as it is.",
                ),
                *prompts_again(),
                io.Mask.Input("mask", optional=True, tooltip="Replaces the mask of the optimisation."),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                marked,
                io.Mask.Output("area", "area", tooltip="The area in which the change was allowed."),
                io.Latent.Output("latent", "latent", tooltip="The marked latent, for VAE Decode."),
                residual,
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        watermark: tuple[ReadableWatermark, ...],
        image: Tensor,
        composition: str,
        strength: str,
        quality: float,
        target_psnr: float,
        pseudo_mask: str,
        attention: str,
        positive: list | None = None,
        negative: list | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        originals = images.from_comfy(image, min_side=MIN_SIDE)
        own = None if mask is None else images.areas(mask, image)
        progress = Progress(len(originals))
        marked, areas, latents, unreadable = [], [], [], []
        for index, original in enumerate(originals.split(1)):
            current = per_image(watermark, index, len(originals), "watermark")
            settings = current.settings.with_(
                composition=None if composition == AS_OPTIMISED else composition,
                quality=quality_of(strength, quality, current.balanced),
                target_psnr=target_psnr or None,
                mask=None if pseudo_mask == AS_OPTIMISED else pseudo_mask,
                inject=None if attention == AS_OPTIMISED else ATTENTION[attention],
            )
            inverted = prepared(current.inversion, positive, negative)
            current = replace(current, inversion=inverted, settings=settings)
            result, denoised = draw(model, vae, current, original, None if own is None else own[index])
            marked.append(result)
            if not current.readable(result):
                unreadable.append(index)
            areas.append(_full(denoised.mask, original))
            latents.append(denoised.latent)
            progress.advance(result)
        warn_unreadable(cls, unreadable, len(originals), REMEDY)
        batch = torch.cat(marked)
        return io.NodeOutput(
            images.to_comfy(batch, image),
            torch.cat(areas),
            {"samples": to_latent(model.model, torch.cat(latents))},
            images.to_comfy(images.residual(batch, originals)),
        )


def draw(
    model: ModelPatcher, vae: VAE, watermark: ReadableWatermark, original: Tensor, area: Tensor | None = None
) -> tuple[Tensor, Denoised]:
    """The marked image (1, 3, H, W), and the decoded images and the mask that it was composed from.

    `area`, (1, 1, H, W), replaces the watermark's mask.
    """
    record = watermark.inversion
    height, width = record.latents.shape[-2:]

    def work(core_model, autoencoder):
        check_model(record, core_model)
        autoencoder.clamped = True  # as VAE Decode does, so that the sampler graph gives the same image
        factor = autoencoder.factor
        part = images.latent_region(size_of(original), (height * factor, width * factor))
        here = watermark
        if area is not None:
            here = replace(watermark, mask=part.cut(resized(area, size_of(original), "bilinear")))
        return part, here.mask, denoise_watermark(core_model, autoencoder, here, part.working)

    part, inside, denoised = run(model, vae, record.positive, record.null, tuple(record.latents.shape[1:]), work)
    composition = compose(
        part.cut(original),
        denoised.decoded,
        denoised.decoded_original,
        watermark.settings.composing,
        mask=denoised.mask,
        area=inside,
    )
    return part.paste(composition.image, original), denoised


def _full(mask: Tensor | None, image: Tensor) -> Tensor:
    """(1, 1, h, w) -> MASK (1, H, W) at the image's size, ones for everywhere."""
    size = image.shape[-2:]
    if mask is None:
        return torch.ones(1, *size)
    return F.interpolate(mask.cpu(), size, mode="bilinear", align_corners=False)[:, 0]


def _with_residual(decoded: Tensor, watermark: ReadableWatermark) -> Tensor:
    """A decoded image (1, 3, H, W) with the residual of the watermark.

    Raises:
        ValueError: The image has another size than the one that was optimised.
    """
    if watermark.residual is not None and watermark.residual.shape != decoded.shape:
        (height, width), (rows, columns) = size_of(decoded), size_of(watermark.residual)
        raise ValueError(
            f"watermark: it was optimised for decoded images of {columns}x{rows} pixels, and decoded_marked has "
            f"{width}x{height}; connect the watermark whose noise was sampled"
        )
    return watermark.with_residual(decoded)


class ComposeNode(io.ComfyNode):
    """Composes images that stock samplers generated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Compose",
            display_name="Compose Watermark",
            search_aliases=["add residual", "composite watermark"],
            category=STAGES,
            description="Adds the difference between two decoded images, marked and unmarked, to the original, at the "
            "resolution of the original and at the requested quality.",
            inputs=[
                io.Image.Input("original", tooltip="The original, at any size."),
                io.Image.Input("decoded_marked", tooltip="Decoded from the marked noise."),
                io.Image.Input("decoded_original", tooltip="Decoded from the original's noise by the same sampling."),
                composition("mode"),
                *strength("that of the connected watermark, or balanced without one"),
                target_psnr(),
                advanced(
                    io.Boolean.Input,
                    "luma_only",
                    default=PRESETS[DEFAULT_PRESET].luma_only,
                    tooltip="Add only the luminance of the change, in the colour that lowers PSNR least, as "
                    "Denoise Watermark does.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="The area that may be changed."),
                WatermarkType.Input(
                    "watermark",
                    optional=True,
                    tooltip="From Optimize Watermark Noise: adds its change of the decoded image, which no sampler "
                    "generates. Without it, the watermark is weaker.",
                ),
            ],
            outputs=[
                *composed_outputs(),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        original: Tensor,
        decoded_marked: Tensor,
        decoded_original: Tensor,
        mode: str,
        strength: str,
        quality: float,
        target_psnr: float,
        luma_only: bool,
        mask: Tensor | None = None,
        watermark: tuple[ReadableWatermark, ...] | None = None,
    ) -> io.NodeOutput:
        originals = images.from_comfy(original, "original", min_side=MIN_SIDE)
        marked = images.from_comfy(decoded_marked, "decoded_marked")
        unmarked = images.from_comfy(decoded_original, "decoded_original")
        if marked.shape != unmarked.shape:
            raise ValueError(
                "decoded_original: it differs in size from decoded_marked; decode both with the same sampling settings"
            )
        own = images.areas(mask, original)
        progress = Progress(len(originals))
        composed = []
        for index, image in enumerate(originals.split(1)):
            with_mark = per_image(marked.split(1), index, len(originals), "decoded_marked")
            without = per_image(unmarked.split(1), index, len(originals), "decoded_original")
            settings, score = PRESETS[DEFAULT_PRESET], balanced(DEFAULT_PRESET)
            if watermark is not None:
                current = per_image(watermark, index, len(originals), "watermark")
                with_mark = _with_residual(with_mark, current)
                settings, score = current.settings, current.balanced
            settings = settings.with_(
                composition=mode,
                quality=quality_of(strength, quality, score),
                target_psnr=target_psnr or None,
                luma_only=luma_only,
            )
            part = images.latent_region(size_of(image), size_of(with_mark))
            area = own[index]
            if area is not None:
                area = part.cut(resized(area, size_of(image), "bilinear"))
            composition = compose(
                part.cut(image),
                with_mark,
                without,
                settings.composing,
                area=area,
            )
            composed.append(part.paste(composition.image, image))
            progress.advance(composed[-1])
        result = torch.cat(composed)
        return io.NodeOutput(images.to_comfy(result, original), images.to_comfy(images.residual(result, originals)))
