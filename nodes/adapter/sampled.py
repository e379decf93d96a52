"""The path that a stock sampler took from its noise to a latent, which stands for the inversion of that latent."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .latents import from_latent, from_network
from .noise_levels import NoiseLevels
from .weights import clean

__all__ = ["sampled_path"]

TOLERANCE = 1e-2
"""Largest difference of the latents, relative to their size: other kernels may be used than in the first sampling."""


def sampled_path(
    model: ModelPatcher,
    positive: list,
    negative: list,
    guidance: float,
    noise: Any,
    levels: Tensor,
    latent: dict[str, Any],
    start_sigma: float,
) -> tuple[Tensor, Tensor]:
    """Sample again with the sampler euler, and keep the path from `start_sigma` on.

    Args:
        model: The MODEL that was sampled.
        positive: CONDITIONING of the sampling.
        negative: The same for the negative prompt.
        guidance: CFG of the sampling.
        noise: NOISE of the sampling.
        levels: SIGMAS of the sampling, in ComfyUI's form.
        latent: The LATENT that was sampled from an empty one.
        start_sigma: The core's sigma where the path begins at the latest; a path has at least one step.

    Returns:
        The core's noisy latents, (steps + 1, B, C, h, w), and sigmas, (steps + 1,).

    Raises:
        ValueError: If the sampling gives another latent.
    """
    scale = NoiseLevels(model.get_model_object("model_sampling"))
    visited: list[Tensor] = []
    with torch.inference_mode():  # as ComfyUI samples
        empty = {**latent, "samples": torch.zeros_like(latent["samples"])}
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(guidance)
        end = guider.sample(
            noise.generate_noise(empty),
            empty["samples"],
            comfy.samplers.sampler_object("euler"),
            levels,
            callback=lambda step, denoised, x, total: visited.append(x.cpu()),
            disable_pbar=True,
            seed=noise.seed,
        )
    base = model.model
    found, expected = (from_latent(base, clean(samples).float().cpu()) for samples in (end, latent["samples"]))
    error = ((found - expected).norm() / expected.norm()).item()
    if not error < TOLERANCE:
        raise ValueError(
            f"noise: the sampler euler gives another latent with it (relative difference {error:.2g}); connect the "
            "model, prompts, noise and sigmas of the sampler, set `guidance` to its CFG and the sampler to euler, or "
            "disconnect `noise` and `sampled_sigmas` to invert the latent"
        )
    levels = levels.cpu()
    sigmas = scale.sigma_in(levels.double())
    first = min(int((sigmas > start_sigma * (1 + 1e-6)).sum()), len(sigmas) - 2)
    path = [
        scale.noisy_in(from_network(base, clean(x).float()), level)
        for x, level in zip(visited[first:], levels[first:-1], strict=True)
    ]
    return torch.stack([*path, found]), sigmas[first:].float()
