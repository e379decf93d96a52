"""Adapters between ComfyUI and the core: models, autoencoders, prompts, progress."""

from .autoencoder import ComfyAutoencoder
from .checks import numbered
from .conditioning import NEGATIVE, POSITIVE, ComfyConditioning, check_model, from_comfy, prepared, to_comfy
from .families import family_of
from .guider import InversionGuider, start_of
from .latents import from_latent, to_latent
from .model import ComfyModel
from .noise_levels import NoiseLevels
from .progress import Progress
from .run import run
from .sampled import sampled_path
from .weights import clean, fresh_weights, normalise, ordinary_tensors

__all__ = [
    "NEGATIVE",
    "POSITIVE",
    "ComfyAutoencoder",
    "ComfyConditioning",
    "ComfyModel",
    "InversionGuider",
    "NoiseLevels",
    "Progress",
    "check_model",
    "clean",
    "family_of",
    "fresh_weights",
    "from_comfy",
    "from_latent",
    "normalise",
    "numbered",
    "ordinary_tensors",
    "prepared",
    "run",
    "sampled_path",
    "start_of",
    "to_comfy",
    "to_latent",
]
