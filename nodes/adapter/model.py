"""A model inside ComfyUI's sampling as the core's `DiffusionModel`.

It exists only while a guider samples: ComfyUI has then loaded the weights, applied LoRAs, and prepared areas,
ControlNets and hooks, and every call below uses the same functions as stock samplers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...onrw_core.diffusion.checkpointing import on_copies, outermost, recomputed
from ...onrw_core.diffusion.model import AttentionControl, AttentionMaps, Conditioning, DiffusionModel
from . import transformers
from .attention import differentiable, with_control
from .conditioning import ComfyConditioning, with_embeddings
from .families import factor_of, family_of
from .identity import identity
from .latents import from_network, to_network
from .noise_levels import NoiseLevels

__all__ = ["ComfyModel"]

BLOCKS = ("Block",)


class ComfyModel(DiffusionModel):
    """The model of a guider that is sampling.

    Args:
        guider: A `CFGGuider` inside its `sample`.
        model_options: The options that the guider's sampler received.
        prompts: What the guider prepared as "positive" and "negative".
        factor: Pixels per latent position, where the VAE is known.

    Raises:
        ValueError: If the model predicts neither eps, v nor a flow.
    """

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        model_options: dict[str, Any],
        prompts: Mapping[str, Conditioning],
        factor: int | None = None,
    ) -> None:
        self.levels = NoiseLevels(guider.model_patcher.get_model_object("model_sampling"))
        self.guider = guider
        self.base = guider.inner_model
        self.network = self.base.diffusion_model
        self.device = guider.model_patcher.load_device
        self.model_options = differentiable(model_options)
        self.prompts = prompts
        self.sigmas, self.prediction = self.levels.sigmas, self.levels.prediction
        self.family = family_of(self.base)
        self.maps, self.distilled = self.family.maps, self.family.distilled
        self.factor = factor if factor is not None else factor_of(self.base.latent_format)
        if self.maps == "none":
            logging.info("ONRW: %s is not known; it is used without attention maps", type(self.network).__name__)

    @functools.cached_property
    def name(self) -> str:  # type: ignore[override]  # an attribute of the base; hashing weights takes time
        """See `identity`."""
        return identity(self.guider.model_patcher)

    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        conds = [self._conds(conditioning) for conditioning in conditionings]
        with self._prepared(x, conditionings[0], control) as (options, maps):
            predictions = comfy.samplers.calc_cond_batch(self.base, conds, *self._seen(x, sigma), options)
        return [from_network(self.base, x0).to(x) for x0 in predictions], maps

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
        with self._prepared(x, positive, control) as (options, maps):
            x0 = comfy.samplers.sampling_function(
                self.base,
                *self._seen(x, sigma),
                None if null is None else self._conds(null),
                self._conds(positive),
                1.0 if null is None else guidance,
                model_options=options,
            )
        return from_network(self.base, x0).to(x), maps

    def _seen(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latent and the noise levels as ComfyUI's functions take them."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        noisy = to_network(self.base, self.levels.noisy_out(x.to(self.device), sigma))
        return noisy, self.levels.sigma_out(sigma).expand(len(x))

    @contextmanager
    def _prepared(
        self, x: Tensor, positive: Conditioning, control: AttentionControl | None
    ) -> Iterator[tuple[dict[str, Any], AttentionMaps]]:
        """A context for one call of the network: the sampling options, and the maps that the call fills in."""
        comfy.model_management.throw_exception_if_processing_interrupted()  # Cancel acts within one call of the model
        maps, options = AttentionMaps(), self.model_options
        tokens = positive.embeddings.shape[1]
        with ExitStack() as stack:
            if control is not None and self.family.unet:
                options = with_control(options, self.network, control, maps, x.shape, tokens)
            elif control is not None and self.family.layout is not None:
                references = positive.options.get("reference_latents") or ()
                call = transformers.Call(
                    self.network, self.family.layout, tuple(x.shape), tokens, references, self.factor
                )
                options = stack.enter_context(transformers.controlled(options, call, control, maps))
            blocks = outermost(self.network, BLOCKS)
            if self._recomputing:
                stack.enter_context(recomputed(blocks))
            elif not self.family.unet:
                stack.enter_context(on_copies(blocks))
            yield options, maps

    def _conds(self, conditioning: Conditioning) -> list[dict[str, Any]]:
        """The conds that ComfyUI prepared for this prompt, with its embeddings if they are not the prepared ones."""
        for role, prompt in self.prompts.items():
            if conditioning.embeddings is prompt.embeddings:
                return self.guider.conds[role]
        assert isinstance(conditioning, ComfyConditioning)  # of `from_comfy`
        before = self.prompts[conditioning.role].embeddings
        prepared = self.guider.conds[conditioning.role]
        return [with_embeddings(cond, before, conditioning.embeddings.to(self.device)) for cond in prepared]
