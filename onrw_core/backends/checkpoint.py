"""Loading a Stable Diffusion checkpoint from disk, with nothing fetched and nothing unpickled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..model import Autoencoder, Conditioning, DiffusionModel

__all__ = ["load_checkpoint"]

INDEX = "model_index.json"


def load_checkpoint(
    path: str | os.PathLike[str],
    device: str = "cpu",
) -> tuple[DiffusionModel, Autoencoder, Callable[..., Conditioning]]:
    """Load a checkpoint of the SD1 or SD2 layout.

    Args:
        path: A diffusers folder (with model_index.json), or a single .safetensors file; beside a file
            `x.safetensors` there has to be a folder `x` with the configuration files of its pipeline.
        device: Where its networks run, in half precision on CUDA.

    Returns:
        What `diffusers.from_pipeline` returns: model, autoencoder, encode.

    Raises:
        ValueError: If there is no such checkpoint, it holds pickled weights, or a package for reading it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"model {path}: does not exist; give 'mini', a diffusers folder or a .safetensors file")
    if path.is_dir() and not (path / INDEX).exists():
        raise ValueError(f"model {path}: no diffusers folder, {INDEX} is missing")
    configuration = None if path.is_dir() else _configuration(path)
    try:
        from .diffusers import from_pipeline  # isort: skip  (before diffusers: lets it import beside a foreign torchvision)
        from diffusers import StableDiffusionPipeline
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"model {path}: diffusers cannot be used ({error}); `pip install 'onrw[sd]'`") from error
    options = {"local_files_only": True, "safety_checker": None, "requires_safety_checker": False}
    if device != "cpu":
        import torch

        options["torch_dtype"] = torch.float16
    try:
        if configuration is None:
            pipeline = StableDiffusionPipeline.from_pretrained(path, use_safetensors=True, **options)
        else:
            pipeline = StableDiffusionPipeline.from_single_file(str(path), config=configuration, **options)
    except Exception as error:  # the loaders meet foreign and broken files with errors of many kinds
        raise ValueError(f"model {path}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return from_pipeline(pipeline.to(device))


def _configuration(path: Path) -> str:
    """The folder that says how the networks in a single file are built."""
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"model {path}: only .safetensors files are loaded, others can run code; convert it")
    folder = path.with_suffix("")
    if not (folder / INDEX).exists():
        raise ValueError(
            f"model {path}: put the configuration files of its pipeline ({INDEX} and folders) into {folder}, "
            "or give a diffusers folder"
        )
    return str(folder)
