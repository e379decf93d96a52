"""``onrw convert``: others' decoders as safetensors."""

from __future__ import annotations

import argparse

from .common import say
from .decoders import add_torchscript

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        help="state dict of a HiDDeN or Stable Signature decoder, such a decoder as TorchScript, RivaGAN's .onnx, or "
        "rivagan for the one of the package invisible-watermark",
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=".safetensors file; never overwritten")
    add_torchscript(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..extractors.loading import convert, load_extractor

    target = convert(arguments.input, arguments.output, arguments.allow_torchscript)
    extractor = load_extractor(target)
    say(f"{arguments.input} -> {target}: {extractor.name}, {extractor.num_bits} bits")
    return 0
