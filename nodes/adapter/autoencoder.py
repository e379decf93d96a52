"""A VAE of ComfyUI as the core's `Autoencoder`.

`comfy.sd.VAE.decode` clamps (no gradient outside [0, 1]), may fall back to tiles and loads models itself, so the
network inside it is called directly. The latent scale is that of the model, because one VAE serves models of several
scales.
"""

from __future__ import annotations

import comfy.sd
import torch
from comfy.model_base import BaseModel
from torch import Tensor

from ...onrw_core.diffusion.checkpointing import outermost, recomputed
from ...onrw_core.diffusion.fingerprint import fingerprint
from ...onrw_core.diffusion.model import Autoencoder
from .latents import from_latent, to_latent

__all__ = ["ComfyAutoencoder"]

BLOCKS = ("ResnetBlock", "AttnBlock", "Upsample")


class ComfyAutoencoder(Autoencoder):
    """A loaded VAE of ComfyUI as an autoencoder of the core.

    Attributes:
        clamped: Decode to [0, 1], as the node VAE Decode does; off for gradients.

    Args:
        vae: The VAE, its weights on its device.
        model: Scales latents.

    Raises:
        ValueError: If the VAE is not an image VAE, or its number of channels differs from the model's.
    """

    def __init__(self, vae: comfy.sd.VAE, model: BaseModel) -> None:
        factor = vae.spacial_compression_decode()
        if vae.latent_dim not in (2, 3) or vae.output_channels != 3 or not isinstance(factor, int):
            raise ValueError("vae: it does not decode images; connect the VAE that belongs to the model")
        if vae.latent_channels != model.latent_format.latent_channels:
            raise ValueError(
                f"vae: its latents have {vae.latent_channels} channels and the model's have "
                f"{model.latent_format.latent_channels}; connect the VAE that belongs to the model"
            )
        self.clamped = False
        self.vae = vae
        self.network = vae.first_stage_model
        self.model = model
        self.factor = factor
        self.video = vae.latent_dim == 3  # decodes frames; each image is a video of one
        self.channels = vae.latent_channels
        self.name = f"{type(self.network).__name__}-{fingerprint(self.network.state_dict())}"
        # ComfyUI maps the network's output to [0, 1] and clamps; two values inside give the map without the clamp.
        low, high = (vae.process_output(torch.tensor([value])).item() for value in (0.0, 0.25))
        self.scale, self.offset = (high - low) / 0.25, low

    def encode(self, images: Tensor) -> Tensor:
        pixels = self.vae.process_input(images).to(self.vae.device, self.vae.vae_dtype)
        pixels = pixels.unsqueeze(2) if self.video else pixels
        return from_latent(self.model, self.network.encode(pixels).float()).to(images.device)

    def decode(self, latents: Tensor) -> Tensor:
        z = to_latent(self.model, latents).to(self.vae.device, self.vae.vae_dtype)
        pixels = self.network.decode(z)
        pixels = pixels.squeeze(2) if self.video else pixels
        images = (pixels.float() * self.scale + self.offset).to(latents.device)
        return images.clamp(0, 1) if self.clamped else images

    def decode_checkpointed(self, latents: Tensor) -> Tensor:
        blocks = list(outermost(self.network, BLOCKS))
        if not blocks:
            return super().decode_checkpointed(latents)
        with recomputed(blocks):
            return self.decode(latents)
