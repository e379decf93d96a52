"""Loading a Stable Diffusion checkpoint from disk, with nothing fetched and nothing unpickled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..model import Autoencoder, Conditioning, DiffusionModel
from .diffusers import from_pipeline

__all__ = ["load_checkpoint"]


def load_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[DiffusionModel, Autoencoder, Callable[..., Conditioning]]:
    """Load a checkpoint of the SD1 or SD2 layout.

    Args:
        path: A diffusers folder (with model_index.json), or a single .safetensors file; beside a file
            `x.safetensors` there has to be a folder `x` with the configuration files of its pipeline.

    Returns:
        What `diffusers.from_pipeline` returns: model, autoencoder, encode.

    Raises:
        ValueError: If there is no such checkpoint, it holds pickled weights, or a package for reading it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"model {path}: does not exist; give 'mini', a diffusers folder or a .safetensors file")
    try:
        from diffusers import StableDiffusionPipeline
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"model {path}: diffusers cannot be used ({error}); `pip install 'onrw[sd]'`") from error
    options = {"local_files_only": True, "safety_checker": None, "requires_safety_checker": False}
    try:
        if path.is_dir():
            if not (path / "model_index.json").exists():
                raise ValueError(f"model {path}: no diffusers folder, model_index.json is missing")
            pipeline = StableDiffusionPipeline.from_pretrained(path, use_safetensors=True, **options)
        else:
            pipeline = StableDiffusionPipeline.from_single_file(path, config=_configuration(path), **options)
    except (ImportError, OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"model {path}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return from_pipeline(pipeline)


def _configuration(path: Path) -> str:
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"model {path}: only .safetensors files are loaded, others can run code; convert it")
    folder = path.with_suffix("")
    if not (folder / "model_index.json").exists():
        raise ValueError(
            f"model {path}: put the configuration files of its pipeline (model_index.json and folders) into {folder}, "
            "or give a diffusers folder"
        )
    return str(folder)
