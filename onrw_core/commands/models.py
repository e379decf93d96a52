"""The model that --model names: the embedded one, or a Stable Diffusion checkpoint of the user's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model import Autoencoder, Conditioning, DiffusionModel

__all__ = ["Loaded", "add_model", "load_model"]

MINI = "mini"


@dataclass(frozen=True)
class Loaded:
    """A model with all that marking needs.

    Attributes:
        model: The noise predictor.
        autoencoder: Its autoencoder.
        encode: Prompt -> conditioning; "" gives the null one.
    """

    model: DiffusionModel
    autoencoder: Autoencoder
    encode: Callable[[str], Conditioning]


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=MINI,
        metavar="mini|PATH",
        help="the embedded model, or a Stable Diffusion 1 or 2 checkpoint: a diffusers folder or a .safetensors file "
        "(default: mini)",
    )


def load_model(name: str) -> Loaded:
    """Load what --model names.

    Raises:
        ValueError: If it is no model, or of another kind.
    """
    if name == MINI:
        from ..mini import load_mini

        mini = load_mini()
        return Loaded(mini.model, mini.autoencoder, mini.encode)
    from ..backends.checkpoint import load_checkpoint

    return Loaded(*load_checkpoint(name))
