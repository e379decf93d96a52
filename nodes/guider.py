"""ONRW_Guider: all that stock SamplerCustomAdvanced wants, to draw marked or original pictures."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..onrw_core.inversion import Inversion
from ..onrw_core.ode import latent_scale
from ..onrw_core.optimise import Watermark
from .adapter import InversionGuider, NoNoise, ordinary_tensors, prepared
from .sockets import CATEGORY, InversionType, WatermarkType

__all__ = ["GuiderNode"]

MARKED, ORIGINAL = "marked", "original"


class GuiderNode(io.ComfyNode):
    """Watermarks and inversions for the sampler graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_Guider",
            display_name="ONRW Guider",
            category=CATEGORY,
            description="Turns a watermark or an inversion into guider, noise, sigmas and latent of "
            "SamplerCustomAdvanced. "
            "With the sampler euler it draws what ONRW Constrained Denoise draws.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the inversion was made with."),
                io.MultiType.Input(
                    "record",
                    types=[WatermarkType, InversionType],
                    tooltip="A watermark from ONRW Optimize Noise, or an inversion.",
                ),
                io.Combo.Input(
                    "branch",
                    options=[MARKED, ORIGINAL],
                    default=MARKED,
                    tooltip="marked: from the marked noise. original: from the inverted noise as it is, which is all "
                    "that an "
                    "inversion has.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Stands for the prompt of the inversion; required where that used a ControlNet and was "
                    "loaded "
                    "from a file.",
                ),
            ],
            outputs=[
                io.Guider.Output("guider", "guider", tooltip="Guidance with the null embedding of each step."),
                io.Noise.Output("noise", "noise", tooltip="No noise: the latent is noisy already."),
                io.Sigmas.Output(
                    "sigmas", "sigmas", tooltip="The noise levels, from the inversion's start to a clean latent."
                ),
                io.Latent.Output("latent", "latent", tooltip="The noisy latent, where sampling starts."),
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
    ) -> io.NodeOutput:
        inversions, starts = [], []
        for one in record:
            inversion = one.inversion if isinstance(one, Watermark) else one
            start = inversion.latents[0]
            if isinstance(one, Watermark) and branch == MARKED:
                start = start + one.delta * latent_scale(inversion.sigmas[0], False)
            inversions.append(prepared(inversion, positive))
            starts.append(start)
        inject = isinstance(record[0], Watermark) and record[0].settings.inject and branch == MARKED
        samples = model.model.process_latent_out(torch.cat(starts))
        guider = InversionGuider(model, inversions, inject)
        return io.NodeOutput(guider, NoNoise(), inversions[0].sigmas, {"samples": samples})
