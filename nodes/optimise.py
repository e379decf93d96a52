"""ONRW_OptimizeNoise: optimise the inverted noise until its image carries the message."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.pixels import MIN_SIDE
from ..onrw_core.payload.message import Message, bit_string
from ..onrw_core.stages.composition import resized
from ..onrw_core.stages.constrained_denoising import perturbed
from ..onrw_core.stages.inversion import Inversion
from ..onrw_core.stages.noise_optimisation import Objective, Settings, State, Watermark, optimise
from ..onrw_core.stages.robustness import OnForecast, tell_if_weak
from ..onrw_core.strict_json import to_json
from . import images
from .adapter import Progress, check_model, ordinary_tensors, prepared, run, to_latent
from .charts import curves
from .inputs import (
    balanced,
    extractor,
    generator_for,
    inverted_model,
    mark_mask,
    marking_inputs,
    marking_settings,
    prompts_again,
    vae,
)
from .keys import reader_of
from .schemas import schema
from .sockets import STAGES, InversionType, MessageType, ReadableWatermark, Reader, WatermarkType, per_image
from .warning import warn_unreadable, warn_weak

__all__ = ["OptimizeNoiseNode"]

REMEDY = "allow more iterations, a lower quality or a larger mask"


class OptimizeNoiseNode(io.ComfyNode):
    """Optimises the inverted noise of each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_OptimizeNoise",
            display_name="Optimize Watermark Noise",
            search_aliases=["optimise watermark", "noise optimisation"],
            category=STAGES,
            description="Optimises the inverted noise, by the gradient through sampling, decoding, composition and "
            "random attacks, until the extractor reads the message from the image.",
            inputs=[
                inverted_model(),
                vae(),
                InversionType.Input("inversion", tooltip="From Null-Text Inversion."),
                io.Image.Input("image", tooltip="The original that the latent was encoded from, at any size."),
                MessageType.Input("message", tooltip="The message that the watermark carries, from Watermark Message."),
                *marking_inputs(),
                extractor(),
                *prompts_again(),
                mark_mask(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                WatermarkType.Output("watermark", "watermark", tooltip="For Denoise Watermark and Watermark Guider."),
                io.Latent.Output(
                    "noise",
                    "noise",
                    tooltip="The marked noise, scaled for a sampler that starts at the start sigma of the inversion.",
                ),
                io.Image.Output("curves", "curves", tooltip="Message loss and bit accuracy over the iterations."),
                io.String.Output("report", "report", tooltip="Figures of the optimisation, JSON, one line per image."),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        inversion: tuple[Inversion, ...],
        image: Tensor,
        message: tuple[Message, ...],
        preset: str,
        seed: int,
        extractor: Reader | None = None,
        positive: list | None = None,
        negative: list | None = None,
        mask: Tensor | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        reader = reader_of(extractor, None)
        settings = marking_settings(preset, reader.extractor, **widgets)
        originals = images.from_comfy(image, min_side=MIN_SIDE)
        areas = images.areas(mask, image)
        progress = Progress(len(originals) * settings.iterations)
        watermarks, noises, reports, unreadable = [], [], [], []
        for index, original in enumerate(originals.split(1)):
            record = prepared(per_image(inversion, index, len(originals), "inversion"), positive, negative)
            current = per_image(message, index, len(originals), "message")
            watermark, noise, marked = _optimise(
                model,
                vae,
                record,
                original,
                reader,
                current,
                settings,
                balanced(preset),
                areas[index],
                generator_for(seed, index),
                progress,
                partial(warn_weak, cls),
            )
            watermarks.append(watermark)
            if not watermark.readable(marked):
                unreadable.append(index)
            noises.append(noise)
            reports.append(report(watermark, current))
        samples = to_latent(model.model, torch.cat(noises))
        chart = curves([watermark.report["history"] for watermark in watermarks])
        warn_unreadable(cls, unreadable, len(originals), REMEDY)
        return io.NodeOutput(tuple(watermarks), {"samples": samples}, chart, "\n".join(reports))


def _optimise(
    model: ModelPatcher,
    vae: VAE,
    record: Inversion,
    original: Tensor,
    extractor: Reader,
    message: Message,
    preset: Settings,
    score: float,
    mask: Tensor | None,
    generator: torch.Generator,
    progress: Progress,
    on_forecast: OnForecast,
) -> tuple[ReadableWatermark, Tensor, Tensor]:
    """The watermark, the marked noise, and the marked image of the last iteration (1, 3, h, w), at working size."""
    settings = preset.with_(
        start_sigma=record.start_sigma, steps=record.steps, guidance=record.guidance, method=record.method
    )
    reads = extractor.for_message(message)
    marked = original

    def shown(state: State) -> Tensor:
        nonlocal marked
        marked = state.image
        return marked

    def work(core_model, autoencoder):
        check_model(record, core_model)
        height, width = record.latents.shape[-2:]
        factor = autoencoder.factor
        part = images.latent_region(size_of(original), (height * factor, width * factor))
        here = replace(record, latents=record.latents.to(core_model.device))
        image = part.shrink(original).to(core_model.device)
        if size_of(image) != part.size and not settings.again:
            reads.refuse_marked(part.cut(original))
        objective = Objective(
            core_model,
            autoencoder,
            here,
            image,
            reads.for_image(image, settings.label, settings.again),
            message.bits,
            settings,
            mask=None if mask is None else part.cut(resized(mask, size_of(original), "bilinear")),
        )
        tell_if_weak(objective.composer, objective.extractor, message.bits, on_forecast)
        states = optimise(objective, generator=generator)
        watermark = progress.result_of(states, settings.iterations, shown)
        noise = perturbed(here, watermark.delta)
        readable = ReadableWatermark(**vars(watermark), reader=extractor, message=message, balanced=score)
        return replace(readable, inversion=record, delta=watermark.delta.cpu()), noise.cpu(), marked

    return run(model, vae, record.positive, record.null, tuple(record.latents.shape[1:]), work)


def report(watermark: Watermark, message: Message) -> str:
    """One line of JSON about an optimisation."""
    figures = watermark.report["history"][-1]
    positive = watermark.inversion.positive
    tokens = "word" if positive.word else "content" if positive.content else "all but the first"
    return to_json(
        {
            "message": message.value,
            "bits": bit_string(message.bits),
            "iterations": watermark.report["iterations"],
            "bit_accuracy": round(figures["bit_accuracy"], 4),
            "psnr": round(float(figures["psnr"]), 2),
            "message_loss": round(figures["message_loss"], 5),
            "image_loss": round(figures["image_loss"], 7),
            "attention_loss": round(figures["attention_loss"], 9),
            "mask": watermark.settings.mask,
            "mask_tokens": tokens if watermark.settings.mask != "none" else None,
            "start_sigma": round(watermark.inversion.start_sigma, 4),
            "steps": watermark.inversion.steps,
            "guidance": watermark.inversion.guidance,
        }
    )
