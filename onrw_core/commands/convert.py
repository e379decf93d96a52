"""``onrw convert``: third-party decoders to safetensors."""

from __future__ import annotations

import argparse

from .decoders import add_torchscript
from .output import say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        help="state dict of a HiDDeN or Stable Signature decoder, the same as TorchScript, RivaGAN's .onnx, or "
        "rivagan for the decoder of the package invisible-watermark",
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help=".safetensors file; never overwritten")
    add_torchscript(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..extractors.loading import convert, load_extractor

    target = convert(arguments.input, arguments.output, arguments.allow_torchscript)
    extractor = load_extractor(target)
    say(f"{arguments.input} -> {target}: {extractor.name}, {extractor.num_bits} bits")
    return 0
