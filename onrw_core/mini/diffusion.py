"""Noise schedule and parametrisation of the embedded model: v-prediction on Stable Diffusion's schedule.

Variance-preserving forward process z_t = a_t x0 + s_t eps with a_t^2 = alphas_cumprod (1000 steps, betas linear in
their square roots from .00085 to .012; Rombach et al. 2022). The network predicts v = a_t eps - s_t x0 (Salimans & Ho
2022), hence x0_hat = a_t z_t - s_t v. In sigma space x = z_t / a_t and sigma = s_t / a_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TIMESTEPS", "alphas_cumprod", "noised", "velocity"]

TIMESTEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012


def alphas_cumprod() -> Tensor:
    """Cumulative products of alpha, (1000,), float32."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def noised(x0: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """The noised latent z_t for clean latents (B,C,h,w) at cumulative alphas (B,)."""
    a = alpha_cumprod[:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def velocity(x0: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """The training target v for clean latents (B,C,h,w) at cumulative alphas (B,)."""
    a = alpha_cumprod[:, None, None, None]
    return a.sqrt() * noise - (1 - a).sqrt() * x0
