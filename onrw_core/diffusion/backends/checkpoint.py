"""Loading a Stable Diffusion checkpoint (SD1, SD2, SDXL, SD3) from disk, without network access and without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...imaging.regular import check_regular, open_regular
from ..model import Autoencoder, Conditioning, DiffusionModel

__all__ = ["load_checkpoint"]

INDEX = "model_index.json"
OPTIONAL = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")
"""Parts that SD3 checkpoints may lack."""
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")


def load_checkpoint(
    path: str | os.PathLike[str],
    device: str = "cpu",
    config: str | os.PathLike[str] | None = None,
) -> tuple[DiffusionModel, Autoencoder, Callable[..., Conditioning]]:
    """Load a checkpoint of the SD1, SD2, SDXL or SD3 layout.

    Args:
        path: A diffusers folder (with model_index.json), or a single .safetensors file.
        device: Device of its networks; half precision on any but the CPU.
        config: For a single file: the folder with the configuration files and tokenizers of its pipeline; by default a
            folder `x` next to the file `x.safetensors`.

    Returns:
        Model, autoencoder and ``encode``, as `diffusers.from_pipeline`.

    Raises:
        ValueError: There is no such checkpoint, its weights are pickled, or a package for reading it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"model {path}: does not exist; give 'mini', a diffusers folder or a .safetensors file")
    if path.is_dir() and not (path / INDEX).exists():
        raise ValueError(f"model {path}: no diffusers folder, {INDEX} is missing")
    configuration = None if path.is_dir() else _configuration(path, config)
    kind = _kind(path if configuration is None else Path(configuration))
    try:
        from .diffusers import from_pipeline  # isort: skip  (before diffusers: lets it import beside a foreign torchvision)
        import diffusers
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"model {path}: diffusers cannot be used ({error}); `pip install 'onrw[sd]'`") from error
    options: dict[str, Any] = {"local_files_only": True}
    if kind == PIPELINES[0]:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if kind == PIPELINES[2]:
        folder = path if configuration is None else Path(configuration)
        options |= {name: None for name in OPTIONAL if not (folder / name).is_dir()}
    if device != "cpu":
        import torch

        options["torch_dtype"] = torch.float16
    try:
        if configuration is None:
            pipeline = getattr(diffusers, kind).from_pretrained(path, use_safetensors=True, **options)
        else:
            pipeline = getattr(diffusers, kind).from_single_file(str(path), config=configuration, **options)
    except Exception as error:  # the loaders raise many kinds of errors on broken files
        raise ValueError(f"model {path}: cannot be loaded ({str(error).splitlines()[0]})") from error
    return from_pipeline(pipeline.to(device))


def _kind(folder: Path) -> str:
    """The class of the pipeline that a folder describes."""
    try:
        with open_regular(folder / INDEX) as file:
            kind = json.load(file).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"model {folder}: {INDEX} cannot be read ({error})") from error
    if kind not in PIPELINES:
        raise ValueError(f"model {folder}: it is a {kind}; supported are {', '.join(PIPELINES)}")
    return kind


def _configuration(path: Path, config: str | os.PathLike[str] | None) -> str:
    """The folder with the configuration of the networks in a single file."""
    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"model {path}: only .safetensors files are loaded, since pickled files can run code; convert it"
        )
    check_regular(path)
    folder = path.with_suffix("") if config is None else Path(config)
    if not (folder / INDEX).exists():
        raise ValueError(
            f"model {path}: a single file needs the configuration files and tokenizers of its pipeline ({INDEX} and "
            f"folders), which {folder} lacks; give their folder as --config, or a diffusers folder as the model"
        )
    return str(folder)
