"""A model inside ComfyUI's sampling as the core's `DiffusionModel`.

It lives only while a guider samples: ComfyUI has then loaded the weights, patched LoRAs in, prepared areas, ControlNets
and hooks, and every call below goes through the same functions as stock samplers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.samplers
import torch
from comfy.model_sampling import CONST, V_PREDICTION
from torch import Tensor

from ...onrw_core.fingerprint import fingerprint
from ...onrw_core.model import AttentionControl, AttentionMaps, Conditioning, DiffusionModel
from ...onrw_core.recompute import outermost, recomputed
from .attention import differentiable, with_control
from .conditioning import ComfyConditioning

__all__ = ["ComfyModel"]

BLOCKS = ("ResBlock", "BasicTransformerBlock")


class ComfyModel(DiffusionModel):
    """The model of a guider that is sampling.

    Args:
        guider: A `CFGGuider` inside its `sample`.
        model_options: The options that the guider's sampler received.
        prompts: What the guider prepared as "positive" and "negative".

    Raises:
        ValueError: For flow models and models without an image-like latent or UNet, which are not supported.
    """

    def __init__(
        self, guider: comfy.samplers.CFGGuider, model_options: dict[str, Any], prompts: dict[str, ComfyConditioning]
    ) -> None:
        sampling = guider.model_patcher.get_model_object("model_sampling")
        unet = guider.inner_model.diffusion_model
        if isinstance(sampling, CONST):
            raise ValueError(
                "model: flow models (SD3, Flux, ...) are not supported; use an SD1, SD2 or SDXL checkpoint"
            )
        if not hasattr(unet, "input_blocks"):
            raise ValueError(f"model: {type(unet).__name__} is not a UNet; use an SD1, SD2 or SDXL checkpoint")
        self.guider = guider
        self.device = guider.model_patcher.load_device
        self.model_options = differentiable(model_options)
        self.prompts = prompts
        self.unet = unet
        self.sigmas = sampling.sigmas.detach().float().cpu().clone()
        self.prediction = "v" if isinstance(sampling, V_PREDICTION) else "eps"

    @functools.cached_property
    def name(self) -> str:
        """Family and fingerprint of the weights, patches included."""
        family = type(self.guider.inner_model.model_config).__name__
        return f"{family}-{fingerprint(self.unet.state_dict())}"

    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        options, maps = self._options(x, conditionings[0], control)
        conds = [self._conds(conditioning) for conditioning in conditionings]
        x0 = comfy.samplers.calc_cond_batch(
            self.guider.inner_model, conds, x.to(self.device), self._timestep(x, sigma), options
        )
        return [prediction.to(x) for prediction in x0], maps

    def guided(
        self,
        x: Tensor,
        sigma: Tensor,
        positive: Conditioning,
        null: Conditioning | None,
        guidance: float,
        control: AttentionControl | None = None,
    ) -> tuple[Tensor, AttentionMaps]:
        """Guidance by ComfyUI's own function, so that the user's guidance patches apply."""
        options, maps = self._options(x, positive, control)
        x0 = comfy.samplers.sampling_function(
            self.guider.inner_model,
            x.to(self.device),
            self._timestep(x, sigma),
            None if null is None else self._conds(null),
            self._conds(positive),
            1.0 if null is None else guidance,
            model_options=options,
        )
        return x0.to(x), maps

    def recomputing(self) -> AbstractContextManager[None]:
        """See `DiffusionModel.recomputing`."""
        return recomputed(outermost(self.unet, BLOCKS))

    def _timestep(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma, dtype=torch.float32, device=self.device).expand(len(x))

    def _options(
        self, x: Tensor, positive: Conditioning, control: AttentionControl | None
    ) -> tuple[dict[str, Any], AttentionMaps]:
        comfy.model_management.throw_exception_if_processing_interrupted()  # Cancel acts within one call of the model
        maps = AttentionMaps()
        if control is None:
            return self.model_options, maps
        tokens = positive.embeddings.shape[1]
        return with_control(self.model_options, self.unet, control, maps, x.shape, tokens), maps

    def _conds(self, conditioning: Conditioning) -> list[dict[str, Any]]:
        """What ComfyUI prepared for this prompt, with its embeddings exchanged where they are not the prepared ones."""
        for role, prompt in self.prompts.items():
            if conditioning.embeddings is prompt.embeddings:
                return self.guider.conds[role]
        exchanged = comfy.conds.CONDCrossAttn(conditioning.embeddings.to(self.device))
        prepared = self.guider.conds[conditioning.role]
        return [{**cond, "model_conds": {**cond["model_conds"], "c_crossattn": exchanged}} for cond in prepared]
