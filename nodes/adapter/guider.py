"""A guider that retraces inversions: guided sampling with the null embedding of each step, for stock samplers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...onrw_core.attention import record_rule
from ...onrw_core.inversion import Inversion, replay_step
from ...onrw_core.model import AttentionControl, AttentionMaps
from .conditioning import NEGATIVE, POSITIVE, check_model, to_comfy
from .model import ComfyModel

__all__ = ["InversionGuider", "NoNoise"]


class NoNoise:
    """The NOISE of a latent that is noisy already."""

    seed = 0

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        return torch.zeros_like(latent["samples"], device="cpu")


class InversionGuider(comfy.samplers.CFGGuider):
    """Guidance of one inversion per image of the batch.

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
        self.maps: dict[int, list[AttentionMaps]] = {}
        return super().sample(*args, **kwargs)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided x0_hat, with the null embeddings of the step whose sigma is nearest."""
        if len(x) != len(self.inversions):
            raise ValueError(
                f"latent_image: {len(x)} latents for {len(self.inversions)} images; connect the LATENT of ONRW Guider"
            )
        model = ComfyModel(self, model_options or {}, self.prompts)
        sigma = timestep[0]
        predictions = []
        for index, (latent, inversion) in enumerate(zip(x.split(1), self.inversions, strict=True)):
            step = int((inversion.sigmas[:-1].log() - sigma.cpu().log()).abs().argmin())
            control = self._control(model, index, step) if self.inject else None
            null = inversion.null_at(step)
            positive = self.prompts[POSITIVE]
            predictions.append(model.guided(latent, sigma, positive, null, inversion.guidance, control)[0])
        return torch.cat(predictions)

    def _control(self, model: ComfyModel, index: int, step: int) -> AttentionControl:
        if index not in self.maps:
            check_model(self.inversions[index], model)
            self.maps[index] = original_maps(model, self.inversions[index])
        return AttentionControl(lambda kind, tokens: False, self.maps[index][step])


def original_maps(model: ComfyModel, inversion: Inversion) -> list[AttentionMaps]:
    """Self-attention of the unchanged replay, step by step."""
    x = inversion.latents[0]
    rule = record_rule(tuple(x.shape[-2:]))
    control = AttentionControl(lambda kind, tokens: kind == "self" and rule(kind, tokens))
    recorded = []
    for step in range(inversion.steps):
        x, maps = replay_step(model, inversion, step, x, control=control)
        recorded.append(maps)
    return recorded
