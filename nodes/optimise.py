"""ONRW_OptimizeNoise: find the noise whose picture carries the message."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.attacks import MIXES
from ..onrw_core.constrained import perturbed
from ..onrw_core.extractors.plain import MARKING
from ..onrw_core.inversion import Inversion
from ..onrw_core.message import Message
from ..onrw_core.optimise import PRESETS, Settings, Watermark, optimise
from . import images
from .adapter import Progress, check_model, ordinary_tensors, prepared, run
from .charts import curves
from .sockets import CATEGORY, ExtractorChoice, ExtractorType, InversionType, MessageType, WatermarkType, per_image

__all__ = ["OptimizeNoiseNode", "marking_inputs", "marking_settings"]

DEFAULT_PRESET = "fast"
DEFAULT_MIX = "all"
MAX_SEED = 0xFFFFFFFFFFFFFFFF


def marking_inputs() -> list[io.Input]:
    """The widgets that say how a picture is marked, shared by the nodes that mark."""
    return [
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            default=DEFAULT_PRESET,
            tooltip="fast: quick and robust. paper: the published method. reference: the published code. Values of 0 "
            "and -1 below leave what the preset says.",
        ),
        io.Int.Input(
            "iterations",
            default=0,
            min=0,
            max=10000,
            tooltip="Optimisation steps at most; it stops early when the message holds. 0: as the preset.",
        ),
        io.Float.Input(
            "target_psnr",
            default=42.0,
            min=20.0,
            max=60.0,
            step=0.5,
            tooltip="Quality of the marked image in dB: higher is less visible and less robust. Inside the mask, where "
            "there is one.",
        ),
        io.Float.Input(
            "message_weight",
            default=-1.0,
            min=-1.0,
            max=10000.0,
            step=1.0,
            tooltip="Weight of the message in the loss. -1: as the preset.",
        ),
        io.Float.Input(
            "image_weight",
            default=-1.0,
            min=-1.0,
            max=10000.0,
            step=1.0,
            tooltip="Weight of the likeness to the original in the loss, for the composition mode mask. -1: as the "
            "preset.",
        ),
        io.Float.Input(
            "attention_weight",
            default=-1.0,
            min=-1.0,
            max=10000.0,
            step=1.0,
            tooltip="Weight of the self-attention constraint in the loss. 0: none, and faster. -1: as the preset.",
        ),
        io.Int.Input(
            "attacks",
            default=0,
            min=0,
            max=64,
            tooltip="Random attacks (crops, JPEG, rotations, ...) per step, which the mark learns to survive. 0: as "
            "the preset.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Draws the attacks. Image number n of a batch uses seed + n.",
        ),
        io.Combo.Input(
            "mix",
            options=list(MIXES),
            default=DEFAULT_MIX,
            optional=True,
            tooltip="Which attacks are drawn. all: everything (upright for decoders of others, which cannot undo "
            "turns). geometric: crops, turns, sizes. values: JPEG, noise, tones. upright: no large turns, no "
            "distortions. none: no attack. regeneration: everything, and the model making the picture anew; slower.",
        ),
    ]


def marking_settings(preset: str, extractor: ExtractorChoice, **widgets: float | str) -> Settings:
    """The preset, as the extractor needs it, with the widgets that say something else."""
    unset = {"iterations": 0, "attacks": 0, "message_weight": -1, "image_weight": -1, "attention_weight": -1}
    settings = PRESETS[preset]
    if not extractor.keyed:
        settings, unset = settings.with_(**MARKING), unset | {"mix": DEFAULT_MIX}
    changes = {name: value for name, value in widgets.items() if name not in unset or value != unset[name]}
    return settings.with_(**changes)


class OptimizeNoiseNode(io.ComfyNode):
    """Optimises the inverted noise of each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_OptimizeNoise",
            display_name="ONRW Optimize Noise",
            category=CATEGORY,
            description="Changes the inverted noise, by gradient through sampling, decoding, composition and random "
            "attacks, "
            "until the extractor reads the message from the picture.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the inversion was made with."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                InversionType.Input("inversion", tooltip="From ONRW Null-Text Inversion."),
                io.Image.Input("image", tooltip="The original, of which the latent was made, at any size."),
                ExtractorType.Input("extractor", tooltip="Who reads the mark, from ONRW Load Extractor."),
                MessageType.Input("message", tooltip="What the mark says, from ONRW Message."),
                *marking_inputs(),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Stands for the prompt of the inversion; required where that used a ControlNet and was "
                    "loaded "
                    "from a file.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the mark may lie; everywhere without it."),
            ],
            outputs=[
                WatermarkType.Output("watermark", "watermark", tooltip="For ONRW Constrained Denoise and ONRW Guider."),
                io.Latent.Output(
                    "noise", "noise", tooltip="The marked noise, as it enters a sampler at the inversion's start sigma."
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
        extractor: ExtractorChoice,
        message: tuple[Message, ...],
        preset: str,
        seed: int,
        positive: list | None = None,
        mask: Tensor | None = None,
        **widgets: float | str,
    ) -> io.NodeOutput:
        settings = marking_settings(preset, extractor, **widgets)
        originals = images.from_comfy(image)
        progress = Progress(len(originals) * settings.iterations)
        watermarks, noises, reports = [], [], []
        for index, original in enumerate(originals.split(1)):
            record = prepared(per_image(inversion, index, len(originals), "inversion"), positive)
            said = per_image(message, index, len(originals), "message")
            watermark, noise = _optimise(
                model,
                vae,
                record,
                original,
                extractor,
                said,
                settings,
                images.mask_of(mask, index),
                torch.Generator().manual_seed((seed + index) & MAX_SEED),
                progress,
            )
            watermarks.append(watermark)
            noises.append(noise)
            reports.append(report(watermark, said))
        samples = model.model.process_latent_out(torch.cat(noises))
        chart = curves([watermark.report["history"] for watermark in watermarks])
        return io.NodeOutput(tuple(watermarks), {"samples": samples}, chart, "\n".join(reports))


def _optimise(
    model: ModelPatcher,
    vae: VAE,
    record: Inversion,
    original: Tensor,
    extractor: ExtractorChoice,
    message: Message,
    preset: Settings,
    mask: Tensor | None,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[Watermark, Tensor]:
    settings = preset.with_(
        start_sigma=record.start_sigma, steps=record.steps, guidance=record.guidance, method=record.method
    )
    reader = extractor.load(len(message.bits))

    def work(core_model, autoencoder):
        check_model(record, core_model)
        height, width = record.latents.shape[-2:]
        factor = autoencoder.factor
        part = images.frame(tuple(original.shape[-2:]), (height * factor, width * factor))
        here = replace(record, latents=record.latents.to(core_model.device))
        states = optimise(
            core_model,
            autoencoder,
            here,
            part.shrink(original).to(core_model.device),
            reader,
            message.bits,
            settings,
            generator=generator,
            mask=None if mask is None else part.cut(_at(mask, original)),
        )
        for state in progress.follow(states, settings.iterations, lambda state: state.image):
            watermark = state.watermark
        noise = perturbed(core_model, here, watermark.delta)
        return replace(watermark, inversion=record, delta=watermark.delta.cpu()), noise.cpu()

    return run(model, vae, record.positive, record.null, tuple(record.latents.shape[1:]), work)


def _at(mask: Tensor, image: Tensor) -> Tensor:
    size = image.shape[-2:]
    return torch.nn.functional.interpolate(mask, size, mode="bilinear", align_corners=False)


def report(watermark: Watermark, message: Message) -> str:
    """One line of JSON about an optimisation."""
    figures = watermark.report["history"][-1]
    positive = watermark.inversion.positive
    tokens = "word" if positive.word else "content" if positive.content else "all but the first"
    return json.dumps(
        {
            "message": message.value,
            "bits": "".join(map(str, message.bits.tolist())),
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
