"""The embedded model "mini": a small text-conditional latent diffusion model and its weights."""

from __future__ import annotations

from .adapter import Mini, MiniAutoencoder, MiniModel, load_mini

__all__ = ["Mini", "MiniAutoencoder", "MiniModel", "load_mini"]
