"""Text to image with the embedded model: the plain deterministic sampler, for sample sheets and figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model import Conditioning
from ..ode import integrate, schedule
from .adapter import Mini
from .autoencoder import FACTOR

__all__ = ["sample"]


@torch.no_grad()
def sample(
    mini: Mini, prompts: Sequence[str], *, size: int = 256, steps: int = 20, guidance: float = 4.0, seed: int = 0
) -> Tensor:
    """Pictures of the prompts: (N,3,size,size), clamped to [0,1]."""
    positive = Conditioning(torch.cat([mini.encode(prompt).embeddings for prompt in prompts]))
    null = mini.encode("")
    sigmas = schedule(mini.model.sigmas, steps)
    side = size // FACTOR
    noise = torch.randn(
        len(prompts), mini.autoencoder.channels, side, side, generator=torch.Generator().manual_seed(seed)
    )

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mini.model.guided(x, sigma, positive, null, guidance)[0]

    start = noise.to(positive.embeddings.device) * sigmas[0]
    *_, (_, latents) = integrate(denoise, start, sigmas)
    return mini.autoencoder.decode(latents).clamp(0, 1)
