"""ONRW_Guider: the inputs of SamplerCustomAdvanced that regenerate a marked or an original image."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..onrw_core.stages.constrained_denoising import perturbed
from ..onrw_core.stages.inversion import Inversion
from ..onrw_core.stages.noise_optimisation import Watermark
from .adapter import InversionGuider, ordinary_tensors, prepared, start_of
from .inputs import inverted_model, prompts_again
from .schemas import schema
from .sockets import STAGES, InversionType, WatermarkType

__all__ = ["GuiderNode"]

MARKED, ORIGINAL = "marked", "original"


class GuiderNode(io.ComfyNode):
    """Turns a watermark or an inversion into inputs of a stock sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Guider",
            display_name="Watermark Guider",
            search_aliases=["retrace inversion", "watermark guider"],
            category=STAGES,
            description="Turns a watermark or an inversion into guider, noise, sigmas and latent of "
            "SamplerCustomAdvanced; use the sampler euler.",
            inputs=[
                inverted_model(),
                io.MultiType.Input(
                    "record",
                    types=[WatermarkType, InversionType],
                    tooltip="A watermark from Optimize Watermark Noise, or an inversion.",
                ),
                io.Combo.Input(
                    "branch",
                    options=[MARKED, ORIGINAL],
                    default=MARKED,
                    tooltip="marked: start from the marked noise. original: start from the inverted noise. An "
                    "inversion has no marked noise and always starts from the inverted noise.",
                ),
                *prompts_again(),
            ],
            outputs=[
                io.Guider.Output("guider", "guider", tooltip="Guidance with the null embedding of each step."),
                io.Noise.Output("noise", "noise", tooltip="The noise that the sampler adds to the latent."),
                io.Sigmas.Output(
                    "sigmas", "sigmas", tooltip="The noise levels, from the inversion's start to a clean latent."
                ),
                io.Latent.Output("latent", "latent", tooltip="The latent where sampling starts."),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        model: ModelPatcher,
        record: tuple[Watermark, ...] | tuple[Inversion, ...],
        branch: str,
        positive: list | None = None,
        negative: list | None = None,
    ) -> io.NodeOutput:
        inversions, starts, inject = [], [], False
        for item in record:
            inversion = item.inversion if isinstance(item, Watermark) else item
            start = inversion.latents[0]
            if isinstance(item, Watermark) and branch == MARKED:
                start, inject = perturbed(inversion, item.delta), item.settings.inject
            starts.append(start)
            inversions.append(prepared(inversion, positive, negative))
        noise, sigmas, samples = start_of(model, torch.cat(starts), inversions[0].sigmas)
        return io.NodeOutput(InversionGuider(model, inversions, inject), noise, sigmas, {"samples": samples})
