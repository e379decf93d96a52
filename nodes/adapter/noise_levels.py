"""Noise levels and noisy latents of a model in the core's form and in ComfyUI's.

The core works with ``x = x0 + sigma * eps``. ComfyUI's eps and v models do so too; its flow models work with
``y = (1 - s) * x0 + s * eps``, which is the same with ``x = y / (1 - s)`` and ``sigma = s / (1 - s)`` (see `ode`).
"""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

__all__ = ["NoiseLevels"]

HIGHEST_FLOW = 0.9999
"""The core's sigma is infinite at 1; ComfyUI's own conversion of a sampler's last latent has the same limit."""
FOREIGN = ("IMG_TO_IMG", "COSMOS_RFLOW")


class NoiseLevels:
    """The conversion of one model.

    Attributes:
        sigmas: The trained levels in the core's form, ascending, (T,), float32 on the CPU.
        prediction: See `DiffusionModel.prediction`.

    Args:
        sampling: ComfyUI's `model_sampling` of the model.

    Raises:
        ValueError: If it is of another kind than eps, v, EDM and flow.
    """

    def __init__(self, sampling: Any) -> None:
        kinds = {kind.__name__ for kind in type(sampling).__mro__}
        if not kinds & {"EPS", "CONST"} or any(kind.startswith(FOREIGN) for kind in kinds):
            raise ValueError(
                f"model: its noise ({', '.join(sorted(kinds - {'Module', 'object'}))}) is not supported; use a model "
                "that predicts eps, v or a flow"
            )
        self.flow = isinstance(sampling, comfy.model_sampling.CONST)
        levels = sampling.sigmas.detach().double().cpu()
        self.sigmas = (self.sigma_in(levels[levels < HIGHEST_FLOW]) if self.flow else levels).float().clone()
        v = isinstance(sampling, comfy.model_sampling.V_PREDICTION) and not isinstance(
            sampling, comfy.model_sampling.EDM
        )
        self.prediction = "v" if v else "eps"

    def sigma_in(self, level: Tensor) -> Tensor:
        """The core's sigma of ComfyUI's level."""
        return level / (1 - level) if self.flow else level

    def sigma_out(self, sigma: Tensor) -> Tensor:
        """ComfyUI's level of the core's sigma."""
        return sigma / (1 + sigma) if self.flow else sigma

    def noisy_in(self, y: Tensor, level: Tensor) -> Tensor:
        """The core's noisy latent of ComfyUI's at its level."""
        return y / (1 - level) if self.flow else y

    def noisy_out(self, x: Tensor, sigma: Tensor) -> Tensor:
        """ComfyUI's noisy latent of the core's at its sigma."""
        return x / (1 + sigma) if self.flow else x

    def start(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The noise and the clean latent, both in the model's scale, from which a stock sampler starts at `x`.

        ComfyUI adds level times noise to the latent, of which it takes (1 - level) in flow models: near level 1 the
        latent has to be empty.
        """
        return (x / sigma, torch.zeros_like(x)) if self.flow else (torch.zeros_like(x), x)
