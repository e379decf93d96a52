"""Text to image with the embedded model: the ancestral sampler, for sample sheets and figures.

Each step goes down to sigma_down and adds fresh noise up to the next level (Ho et al. 2020),

    sigma_up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2,   sigma_down^2 = sigma_next^2 - sigma_up^2,

which corrects earlier steps' errors. A small network makes many: its samples by the deterministic sampler are far
poorer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion.model import Conditioning
from ..diffusion.ode import schedule
from ..mini.adapter import Mini
from ..mini.autoencoder import FACTOR

__all__ = ["sample"]


@torch.no_grad()
def sample(
    mini: Mini, prompts: Sequence[str], *, size: int = 256, steps: int = 20, guidance: float = 4.0, seed: int = 0
) -> Tensor:
    """Images sampled for the prompts: (N,3,size,size), clamped to [0,1]."""
    positive = Conditioning(torch.cat([mini.encode(prompt).embeddings for prompt in prompts]))
    null = mini.encode("")
    sigmas = schedule(mini.model.sigmas, steps)
    side = size // FACTOR
    shape = (len(prompts), mini.autoencoder.channels, side, side)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(positive.embeddings.device) * sigmas[0]
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        x0, _ = mini.model.guided(x, sigma, positive, null, guidance)
        up = after * (1 - (after / sigma) ** 2).sqrt()
        down = (after**2 - up**2).sqrt()
        x = x0 + (x - x0) * (down / sigma) + up * torch.randn(shape, generator=generator).to(x)
    return mini.autoencoder.decode(x0).clamp(0, 1)
