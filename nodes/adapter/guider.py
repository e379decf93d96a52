"""A guider that reconstructs inverted images: guided sampling with the null embedding of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...onrw_core.stages.constrained_denoising import Constraint, Replayed, replay_original
from ...onrw_core.stages.inversion_record import Inversion
from .conditioning import NEGATIVE, POSITIVE, check_model, to_comfy
from .latents import from_network, to_latent, to_network
from .model import ComfyModel
from .noise_levels import NoiseLevels

__all__ = ["InversionGuider", "KnownNoise", "start_of"]


class KnownNoise:
    """The NOISE of an inversion, which is zero where the latent is noisy already."""

    seed = 0

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        return self.noise.cpu()


def start_of(model: ModelPatcher, x: Tensor, sigmas: Tensor) -> tuple[KnownNoise, Tensor, Tensor]:
    """NOISE, SIGMAS and samples of a LATENT with which a stock sampler starts at latents `x` of the core."""
    levels = NoiseLevels(model.get_model_object("model_sampling"))
    noise, latent = levels.start(x, sigmas[0])
    samples = to_network(model.model, latent) if not latent.any() else to_latent(model.model, latent)
    return KnownNoise(to_network(model.model, noise)), levels.sigma_out(sigmas), samples


class InversionGuider(comfy.samplers.CFGGuider):
    """The guider of one inversion per image of the batch, for stock samplers.

    Args:
        model: The model that the inversions were made with.
        inversions: Records with prepared prompts; all with the same sigmas and the same prompts.
        inject: Replace the self-attention by that of the original's replay.
    """

    def __init__(self, model: ModelPatcher, inversions: Sequence[Inversion], inject: bool = False) -> None:
        super().__init__(model)
        self.inversions = tuple(inversions)
        self.inject = inject
        first = self.inversions[0]
        self.prompts = {POSITIVE: first.positive, NEGATIVE: first.positive if first.null is None else first.null}
        self.inner_set_conds({role: to_comfy(prompt) for role, prompt in self.prompts.items()})
        self.set_cfg(first.guidance)

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        self.originals: dict[int, Replayed] = {}
        return super().sample(*args, **kwargs)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided x0_hat, with the null embeddings of the step whose sigma is nearest."""
        if len(x) != len(self.inversions):
            raise ValueError(
                f"latent_image: {len(x)} latents for {len(self.inversions)} images; connect that of Watermark Guider"
            )
        model = ComfyModel(self, model_options or {}, self.prompts)
        sigma = model.levels.sigma_in(timestep[0])
        noisy = model.levels.noisy_in(from_network(self.inner_model, x), timestep[0])
        predictions = []
        for index, (latent, inversion) in enumerate(zip(noisy.split(1), self.inversions, strict=True)):
            step = int((inversion.sigmas[:-1].log() - sigma.cpu().log()).abs().argmin())
            control = self._original(model, index).control(step) if self.inject else None
            null = inversion.null_at(step)
            positive = self.prompts[POSITIVE]
            predictions.append(model.guided(latent, sigma, positive, null, inversion.guidance, control)[0])
        return to_network(self.inner_model, torch.cat(predictions))

    def _original(self, model: ComfyModel, index: int) -> Replayed:
        if index not in self.originals:
            check_model(self.inversions[index], model)
            self.originals[index] = replay_original(model, self.inversions[index], Constraint(inject=True))
        return self.originals[index]
