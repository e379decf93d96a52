"""ONRW_ConstrainedDenoise and ONRW_Compose: from the marked noise back to a picture."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.compose import MODES, compose
from ..onrw_core.optimise import PRESETS, Watermark
from ..onrw_core.pipeline import Rendered, render
from . import images
from .adapter import Progress, check_model, ordinary_tensors, prepared, run
from .sockets import CATEGORY, WatermarkType, per_image

__all__ = ["ComposeNode", "ConstrainedDenoiseNode"]

DEFAULT_PRESET = "fast"
AS_OPTIMISED = "as optimised"
PSEUDO_MASKS = ["none", "soft", "hard"]
ATTENTION = {"replay": False, "inject": True}


class ConstrainedDenoiseNode(io.ComfyNode):
    """Draws the marked picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_ConstrainedDenoise",
            display_name="ONRW Constrained Denoise",
            category=CATEGORY,
            description="Denoises the marked noise beside the original's branch, and composes the change with the "
            "original "
            "at its full resolution.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the watermark was made with."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                WatermarkType.Input("watermark", tooltip="From ONRW Optimize Noise."),
                io.Image.Input("image", tooltip="The original, at any size of the same shape."),
                io.Combo.Input(
                    "composition",
                    options=[AS_OPTIMISED, *MODES],
                    default=AS_OPTIMISED,
                    tooltip="residual: adds the change to the original. mask: puts the decoded picture in its place.",
                ),
                io.Float.Input(
                    "target_psnr",
                    default=0.0,
                    min=0.0,
                    max=60.0,
                    step=0.5,
                    tooltip="Quality of the marked image in dB. 0: as optimised.",
                ),
                io.Combo.Input(
                    "pseudo_mask",
                    options=[AS_OPTIMISED, *PSEUDO_MASKS],
                    default=AS_OPTIMISED,
                    tooltip="Confine the change to where the prompt's words are, by cross-attention: not at all, "
                    "softly, or "
                    "with a hard edge.",
                ),
                io.Combo.Input(
                    "attention",
                    options=[AS_OPTIMISED, *ATTENTION],
                    default=AS_OPTIMISED,
                    tooltip="inject: replace the self-attention by the original's. replay: leave it.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="Stands for the prompt of the inversion."),
                io.Mask.Input("mask", optional=True, tooltip="Stands for the mask of the optimisation."),
            ],
            outputs=[
                io.Image.Output("marked", "marked", tooltip="The marked image, as large as the original."),
                io.Mask.Output("area", "area", tooltip="Where the change was allowed."),
                io.Latent.Output("latent", "latent", tooltip="The marked latent, for VAE Decode."),
                io.Image.Output("residual", "residual", tooltip="The change, ten times as strong, around grey."),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        watermark: tuple[Watermark, ...],
        image: Tensor,
        composition: str,
        target_psnr: float,
        pseudo_mask: str,
        attention: str,
        positive: list | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        originals = images.from_comfy(image)
        progress = Progress(len(originals))
        marked, areas, latents = [], [], []
        for index, original in enumerate(originals.split(1)):
            one = per_image(watermark, index, len(originals), "watermark")
            settings = one.settings.with_(
                composition=None if composition == AS_OPTIMISED else composition,
                target_psnr=target_psnr or None,
                mask=None if pseudo_mask == AS_OPTIMISED else pseudo_mask,
                inject=None if attention == AS_OPTIMISED else ATTENTION[attention],
            )
            area = one.mask if mask is None else images.mask_of(mask, index)
            one = replace(one, inversion=prepared(one.inversion, positive), settings=settings, mask=area)
            picture, rendered = draw(model, vae, one, original)
            marked.append(picture)
            areas.append(_full(rendered.mask, original))
            latents.append(rendered.latent)
            progress.advance(picture)
        result = torch.cat(marked)
        return io.NodeOutput(
            images.to_comfy(result),
            torch.cat(areas),
            {"samples": model.model.process_latent_out(torch.cat(latents))},
            images.to_comfy(images.residual(result, originals)),
        )


def draw(model: ModelPatcher, vae: VAE, watermark: Watermark, original: Tensor) -> tuple[Tensor, Rendered]:
    """The marked picture (1, 3, H, W), and what it was composed of."""
    record = watermark.inversion
    height, width = record.latents.shape[-2:]

    def work(core_model, autoencoder):
        check_model(record, core_model)
        autoencoder.clamped = True  # what VAE Decode gives, so that the sampler graph draws the same picture
        factor = autoencoder.factor
        part = images.frame(tuple(original.shape[-2:]), (height * factor, width * factor))
        return part, render(core_model, autoencoder, watermark, part.cut(original), part.working)

    part, rendered = run(model, vae, record.positive, record.null, tuple(record.latents.shape[1:]), work)
    return part.paste(rendered.composition.image, original), rendered


def _full(mask: Tensor | None, image: Tensor) -> Tensor:
    """(1, 1, h, w) -> MASK (1, H, W) at the image's size, ones for everywhere."""
    size = image.shape[-2:]
    if mask is None:
        return torch.ones(1, *size)
    return F.interpolate(mask.cpu(), size, mode="bilinear", align_corners=False)[:, 0]


class ComposeNode(io.ComfyNode):
    """Composes pictures that stock samplers drew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_Compose",
            display_name="ONRW Compose",
            category=CATEGORY,
            description="Puts the change between two decoded pictures, marked and unmarked, onto the original, at the "
            "original's resolution and at the quality that is asked for.",
            inputs=[
                io.Image.Input("original", tooltip="The original, at any size."),
                io.Image.Input("decoded_marked", tooltip="Decoded from the marked noise."),
                io.Image.Input("decoded_original", tooltip="Decoded from the original's noise by the same sampling."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="residual: adds the change to the original. mask: puts the decoded picture in its place.",
                ),
                io.Float.Input(
                    "target_psnr",
                    default=42.0,
                    min=20.0,
                    max=60.0,
                    step=0.5,
                    tooltip="Quality in dB, in the mode residual; inside the mask, where there is one.",
                ),
                io.Boolean.Input(
                    "luma_only",
                    default=PRESETS[DEFAULT_PRESET].luma_only,
                    tooltip="Add only the brightness of the change, in the colour that costs least PSNR, as ONRW "
                    "Constrained Denoise does.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the change may lie."),
            ],
            outputs=[
                io.Image.Output("marked", "marked", tooltip="The marked image, as large as the original."),
                io.Image.Output("residual", "residual", tooltip="The change, ten times as strong, around grey."),
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
        target_psnr: float,
        luma_only: bool,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        originals, marked, unmarked = (images.from_comfy(i) for i in (original, decoded_marked, decoded_original))
        if marked.shape != unmarked.shape:
            raise ValueError(
                "decoded_original: it differs in size from decoded_marked; decode both by the same sampling"
            )
        composed = []
        for index, picture in enumerate(originals.split(1)):
            one = per_image(marked.split(1), index, len(originals), "decoded_marked")
            zero = per_image(unmarked.split(1), index, len(originals), "decoded_original")
            part = images.frame(tuple(picture.shape[-2:]), tuple(one.shape[-2:]))
            area = images.mask_of(mask, index)
            area = None if area is None else F.interpolate(area, one.shape[-2:], mode="bilinear", align_corners=False)
            result = compose(
                part.cut(picture), one, zero, mode=mode, target_psnr=target_psnr, luma_only=luma_only, mask=area
            )
            composed.append(part.paste(result.image, picture))
        result = torch.cat(composed)
        return io.NodeOutput(images.to_comfy(result), images.to_comfy(images.residual(result, originals)))
