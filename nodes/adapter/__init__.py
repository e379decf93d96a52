"""The bridge between ComfyUI and the core: models, autoencoders, prompts, progress."""

from .autoencoder import ComfyAutoencoder
from .conditioning import NEGATIVE, POSITIVE, ComfyConditioning, check_model, from_comfy, prepared, to_comfy
from .guider import InversionGuider, NoNoise
from .model import ComfyModel
from .progress import Progress
from .run import run
from .weights import clean, normalise, ordinary_tensors

__all__ = [
    "NEGATIVE",
    "POSITIVE",
    "ComfyAutoencoder",
    "ComfyConditioning",
    "ComfyModel",
    "InversionGuider",
    "NoNoise",
    "Progress",
    "check_model",
    "clean",
    "from_comfy",
    "normalise",
    "ordinary_tensors",
    "prepared",
    "run",
    "to_comfy",
]
