"""The options of the extractor: --extractor, --decoder-input, --decoder-size, --allow-torchscript."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..extractors import KEYED
from ..payload.keys import ENVIRONMENT, Key
from .common import load_key, number

if TYPE_CHECKING:
    from ..extractors.base import Extractor

__all__ = ["INPUTS", "add_extractor", "add_torchscript", "load_reader", "reader_key"]

INPUTS = ("unit", "imagenet", "symmetric")


def add_torchscript(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-torchscript", action="store_true", help="run the program in a TorchScript file; only if you trust it"
    )


def add_extractor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extractor",
        default=KEYED,
        metavar="FILE|rivagan",
        help="a third-party decoder in place of the keyed one: a .safetensors file of `onrw convert`, a HiDDeN or "
        "Stable Signature state dict, RivaGAN's .onnx, TorchScript, or rivagan for the decoder of invisible-watermark",
    )
    add_torchscript(parser)
    parser.add_argument(
        "--decoder-input",
        choices=INPUTS,
        default=INPUTS[0],
        help="input values of a TorchScript decoder: from 0 to 1, ImageNet-normalised, or -1 to 1 (default: unit)",
    )
    parser.add_argument(
        "--decoder-size",
        type=number(int, 8, 4096),
        metavar="N",
        help="input side of a TorchScript decoder that takes one size only; images are resized to it",
    )


def reader_key(arguments: argparse.Namespace, needed: bool) -> Key | None:
    """The key of --key or of the environment; None where no key is given or needed.

    Args:
        arguments: With those of `add_key` and `add_extractor`.
        needed: Whether the messages need a key; the keyed extractor always does.

    Raises:
        ValueError: A key is needed, and none is given.
    """
    given = arguments.key is not None or ENVIRONMENT in os.environ
    return load_key(arguments.key) if given or needed or arguments.extractor == KEYED else None


def load_reader(arguments: argparse.Namespace, key: Key | None) -> Extractor:
    """The extractor of --extractor."""
    from ..extractors.loading import load_extractor

    return load_extractor(
        arguments.extractor,
        key,
        allow_torchscript=arguments.allow_torchscript,
        values=arguments.decoder_input,
        size=arguments.decoder_size,
    )
