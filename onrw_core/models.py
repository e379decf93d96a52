"""Loading the diffusion model: the embedded model, or a Stable Diffusion checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .arguments import check_types

if TYPE_CHECKING:
    from .diffusion.model import Autoencoder, Conditioning, DiffusionModel

__all__ = ["MINI", "Loaded", "load_model"]

MINI = "mini"


@dataclass(frozen=True)
class Loaded:
    """A loaded model with its autoencoder and prompt encoder.

    Attributes:
        model: The noise predictor.
        autoencoder: Its autoencoder.
        encode: Prompt -> conditioning; "" gives the null conditioning.
        device: Device of the model, and of the images given to it.
    """

    model: DiffusionModel
    autoencoder: Autoencoder
    encode: Callable[[str], Conditioning]
    device: str = "cpu"


def load_model(
    name: str | os.PathLike[str], device: str = "cpu", config: str | os.PathLike[str] | None = None
) -> Loaded:
    """Load a model.

    Args:
        name: "mini" for the embedded model, or a Stable Diffusion checkpoint (SD1, SD2, SDXL, SD3): a diffusers folder
            or a .safetensors file.
        device: A torch device.
        config: For a .safetensors file, the folder with its configuration and tokenizers; by default the folder of its
            name next to it.

    Raises:
        ValueError: There is no model at the path, it is of an unsupported kind, or the device is not there.
    """
    check_types(name=(name, str | os.PathLike), device=(device, str), config=(config, str | os.PathLike | None))
    _check_device(device)
    if name == MINI:
        from .mini import load_mini  # imports torch

        mini = load_mini(device)
        return Loaded(mini.model, mini.autoencoder, mini.encode, device)
    from .diffusion.backends.checkpoint import load_checkpoint

    return Loaded(*load_checkpoint(name, device, config), device)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(
            f'device: {device!r} is not usable here ({str(error).splitlines()[0]}); give "cpu" or another one'
        ) from None
