"""ONRW_Watermark: the whole job in one node."""

from __future__ import annotations

import json

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.message import Message
from ..onrw_core.optimise import Settings
from ..onrw_core.pipeline import WORKING_SIZE, Marked, embed, working_image
from . import images
from .adapter import NEGATIVE, POSITIVE, ComfyConditioning, Progress, from_comfy, ordinary_tensors, run
from .optimise import MAX_SEED, marking_inputs, marking_settings
from .reading import read
from .sockets import CATEGORY, ExtractorChoice, ExtractorType, MessageType, per_image

__all__ = ["WatermarkNode"]


class WatermarkNode(io.ComfyNode):
    """Inverts, optimises, denoises and composes every image of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_Watermark",
            display_name="ONRW Watermark",
            category=CATEGORY,
            description="Marks images: inversion, optimisation of the noise, constrained denoising and composition "
            "in one "
            "node. Each image keeps its size.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A diffusion model: ONRW Load Mini, or an SD1, SD2 or SDXL checkpoint."
                ),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input("image", tooltip="The images to mark, at any size."),
                ExtractorType.Input("extractor", tooltip="Who reads the mark, from ONRW Load Extractor."),
                MessageType.Input("message", tooltip="What the mark says, from ONRW Message."),
                *marking_inputs(),
                io.Int.Input(
                    "size",
                    default=WORKING_SIZE,
                    min=128,
                    max=2048,
                    step=64,
                    tooltip="Working size: the shorter side, in pixels, at which an image is marked. Larger is more "
                    "robust and "
                    "slower. The mark is brought to the image's own size.",
                ),
                io.String.Input("prompt", default="", tooltip="What the image shows, encoded by clip. May be empty."),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompt, where no conditioning is connected."),
                io.Conditioning.Input("positive", optional=True, tooltip="The prompt, in place of clip and prompt."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The empty prompt, in place of clip's. Guidance needs one of the two.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where the mark may lie; everywhere without it."),
            ],
            outputs=[
                io.Image.Output("marked", "marked", tooltip="The marked images."),
                io.String.Output(
                    "report", "report", tooltip="Quality and a reading of each marked image, JSON, one line per image."
                ),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        image: Tensor,
        extractor: ExtractorChoice,
        message: tuple[Message, ...],
        preset: str,
        seed: int,
        size: int,
        prompt: str,
        clip: CLIP | None = None,
        positive: list | None = None,
        negative: list | None = None,
        mask: Tensor | None = None,
        **widgets: float | str,
    ) -> io.NodeOutput:
        settings = marking_settings(preset, extractor, **widgets)
        if positive is None and clip is None:
            raise ValueError("positive: connect a prompt to `positive`, or a text encoder to `clip`")
        said = from_comfy(_encode(clip, prompt) if positive is None else positive, POSITIVE)
        if negative is None and clip is not None:
            negative = _encode(clip, "")
        if negative is None and settings.guidance != 1:
            raise ValueError(f"negative: the preset {preset} uses guidance; connect an empty prompt, or `clip`")
        null = None if negative is None else from_comfy(negative, NEGATIVE)
        originals = images.from_comfy(image)
        progress = Progress(len(originals) * settings.iterations)
        marked, reports = [], []
        for index, original in enumerate(originals):
            meant = per_image(message, index, len(originals), "message")
            generator = torch.Generator().manual_seed((seed + index) & MAX_SEED)
            area = images.mask_of(mask, index)
            done = _embed(model, vae, original, extractor, meant, said, null, settings, size, area, generator, progress)
            progress.advance(done.image[None], (index + 1) * settings.iterations)
            marked.append(done.image.cpu())
            reports.append(report(done, meant, extractor))
        return io.NodeOutput(images.to_comfy(torch.stack(marked)), "\n".join(reports))


def _encode(clip: CLIP, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _embed(
    model: ModelPatcher,
    vae: VAE,
    original: Tensor,
    extractor: ExtractorChoice,
    message: Message,
    positive: ComfyConditioning,
    null: ComfyConditioning | None,
    settings: Settings,
    size: int,
    mask: Tensor | None,
    generator: torch.Generator,
    progress: Progress,
) -> Marked:
    reader = extractor.load(len(message.bits))
    padded = working_image(original, size)[1]
    shape = (1, vae.latent_channels, *(side // vae.downscale_ratio for side in padded.shape[-2:]))
    start = progress.done

    def work(core_model, autoencoder):
        return embed(
            original.to(core_model.device),
            core_model,
            autoencoder,
            reader,
            message.bits,
            positive=positive,
            null=null,
            settings=settings,
            generator=generator,
            size=size,
            mask=mask,
            on_state=lambda state: progress.advance(state.image, start + state.iteration),
        )

    return run(model, vae, positive, null, shape, work)


def report(marked: Marked, message: Message, extractor: ExtractorChoice) -> str:
    """One line of JSON: quality, and what is read from the marked image."""
    found = read(extractor, marked.image.cpu(), message)
    figures = {
        "message": message.value,
        "bits": "".join(map(str, message.bits.tolist())),
        "psnr": round(marked.psnr, 2),
        "psnr_image": round(marked.psnr_image, 2),
        "ssim": round(marked.ssim, 4),
        "iterations": marked.iterations,
        "seconds": round(marked.seconds, 1),
        "detected": found.detected,
        "log10_p": round(found.log10_p, 2),
        "bit_accuracy": round(found.bit_accuracy, 4),
    }
    return json.dumps(figures)
