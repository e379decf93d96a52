"""Latents of images in the core's form, (B, C, h, w) in the model's scale, and in ComfyUI's LATENT.

A LATENT has the scale of the VAE, and a frame axis, (B, C, 1, h, w), for models of video, which make images too.
"""

from __future__ import annotations

from comfy.model_base import BaseModel
from torch import Tensor

__all__ = ["from_latent", "from_network", "to_latent", "to_network"]

FRAME = 2


def to_network(model: BaseModel, latents: Tensor) -> Tensor:
    """Latents of the core with the axes of the model's network."""
    return latents.unsqueeze(FRAME) if _video(model) else latents


def from_network(model: BaseModel, latents: Tensor) -> Tensor:
    """The inverse of `to_network`.

    Raises:
        ValueError: If there are several frames.
    """
    if latents.ndim == 4:
        return latents
    if latents.shape[FRAME] != 1:
        raise ValueError(
            f"latent: it is a video of {latents.shape[FRAME]} latent frames, as which VAE Encode encodes a batch for "
            "this model; encode one image at a time, or connect the batch to Embed Watermark"
        )
    return latents.squeeze(FRAME)


def from_latent(model: BaseModel, samples: Tensor) -> Tensor:
    """Latents of the core of a LATENT's samples."""
    return from_network(model, model.process_latent_in(to_network(model, from_network(model, samples))))


def to_latent(model: BaseModel, latents: Tensor) -> Tensor:
    """Samples for a LATENT of latents of the core."""
    return model.process_latent_out(to_network(model, latents))


def _video(model: BaseModel) -> bool:
    return model.latent_format.latent_dimensions == 3
