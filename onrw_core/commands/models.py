"""The options --model and --device."""

from __future__ import annotations

import argparse

from ..models import MINI

__all__ = ["add_device", "add_model", "chosen_device"]


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=MINI,
        metavar="mini|PATH",
        help="the embedded model, or a Stable Diffusion checkpoint (SD1, SD2, SDXL, SD3): a diffusers folder or a "
        ".safetensors file (default: mini)",
    )
    parser.add_argument(
        "--config",
        metavar="FOLDER",
        help="for a .safetensors file: the configuration files and tokenizers of its pipeline (default: the folder of "
        "its name next to it)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="cpu|cuda[:N]|auto",
        help="device of the networks; auto: a CUDA device if there is one (default: cpu)",
    )


def chosen_device(name: str) -> str:
    """The device of --device on this machine.

    Raises:
        ValueError: Unknown device, or this machine does not have it.
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
