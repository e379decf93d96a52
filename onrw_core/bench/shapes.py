"""Stable Diffusion's networks with random weights, since time and memory do not depend on the weights.

SDXL's UNet is built without the embedding of pooled text and sizes, two small linear layers on one vector.
"""

from __future__ import annotations

import torch

from ..diffusion.model import Conditioning
from ..models import Loaded

__all__ = ["DTYPES", "SHAPES", "TOKENS", "noise_schedule", "random_model", "random_networks"]

TOKENS = 77
SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}  # of the weights
SHAPES = {"sd15-random": SD15, "sdxl-random": SDXL}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
BETAS = (0.00085, 0.012, 1000)  # of the "scaled linear" schedule


def random_networks(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet and VAE of one of `SHAPES`, on torch's default device, from its global generator."""
    from ..diffusion.backends import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL, UNet2DConditionModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return UNet2DConditionModel(**SHAPES[name]), AutoencoderKL(**VAE)
    finally:
        torch.set_default_dtype(before)


def noise_schedule() -> torch.Tensor:
    """alphas_cumprod of Stable Diffusion, (1000,)."""
    low, high, count = BETAS
    betas = torch.linspace(low**0.5, high**0.5, count, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def random_model(name: str, device: str, dtype: torch.dtype, seed: int = 0) -> Loaded:
    """One of `SHAPES` as a model with autoencoder; every prompt has the same random embedding.

    Args:
        name: Key of `SHAPES`.
        device: Where it runs.
        dtype: Of the weights.
        seed: Of the weights.
    """
    from ..diffusion.backends.diffusers import DiffusersAutoencoder, DiffusersModel

    torch.manual_seed(seed)  # diffusers draws from the global generator
    with torch.device(device):
        unet, vae = random_networks(name, dtype)
    model = DiffusersModel(unet, noise_schedule(), name=name)
    width = SHAPES[name]["cross_attention_dim"]
    embedding = torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(seed)).to(device)
    prompt = Conditioning(embedding, content=tuple(range(1, TOKENS - 1)))
    return Loaded(model, DiffusersAutoencoder(vae, name=f"{name} vae"), lambda _: prompt)
