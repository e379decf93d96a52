"""The model that --model names, the embedded one or a Stable Diffusion checkpoint of the user's, and where it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Autoencoder, Conditioning, DiffusionModel

__all__ = ["Loaded", "add_device", "add_model", "chosen_device", "load_model"]

MINI = "mini"


@dataclass(frozen=True)
class Loaded:
    """A model with all that marking needs.

    Attributes:
        model: The noise predictor.
        autoencoder: Its autoencoder.
        encode: Prompt -> conditioning; "" gives the null one.
        device: Where it runs, and where pictures have to be.
    """

    model: DiffusionModel
    autoencoder: Autoencoder
    encode: Callable[[str], Conditioning]
    device: str = "cpu"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=MINI,
        metavar="mini|PATH",
        help="the embedded model, or a Stable Diffusion 1 or 2 checkpoint: a diffusers folder or a .safetensors file "
        "(default: mini)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="cpu|cuda[:N]|auto",
        help="where networks run; auto: on a CUDA card if there is one (default: cpu)",
    )


def chosen_device(name: str) -> str:
    """What --device stands for on this machine.

    Raises:
        ValueError: It is no device, or this machine has none of that kind.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ValueError(f"--device {name}: unknown; choose cpu, cuda, cuda:N or auto")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here; use cpu or auto")
    return name


def load_model(name: str, device: str = "cpu") -> Loaded:
    """Load what --model names.

    Args:
        name: "mini" or a path.
        device: Of `chosen_device`.

    Raises:
        ValueError: If it is no model, or of another kind.
    """
    if name == MINI:
        from ..mini import load_mini

        mini = load_mini(device)
        return Loaded(mini.model, mini.autoencoder, mini.encode, device)
    from ..backends.checkpoint import load_checkpoint

    return Loaded(*load_checkpoint(name, device), device)
