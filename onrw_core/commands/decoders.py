"""Others' decoders on the command line: --extractor and what belongs to it."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..keys import ENVIRONMENT, Key
from .common import expand, json_line, load_key, number, p_value, run_batch, say
from .expected import expected_bits, match, sentence
from .lookup import known

if TYPE_CHECKING:
    from ..extractors.base import Extractor

__all__ = ["INPUTS", "add_extractor", "add_torchscript", "extract_plain", "load_decoder", "optional_key"]

INPUTS = ("unit", "imagenet", "symmetric")


def add_torchscript(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-torchscript", action="store_true", help="run the program in a TorchScript file; only if you trust it"
    )


def add_extractor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--extractor",
        metavar="FILE|rivagan",
        help="another decoder than the keyed one: a .safetensors file of `onrw convert`, a HiDDeN or Stable Signature "
        "state dict, RivaGAN's .onnx, TorchScript, or rivagan for the one of the package invisible-watermark",
    )
    add_torchscript(parser)
    parser.add_argument(
        "--decoder-input",
        choices=INPUTS,
        default=INPUTS[0],
        help="what a TorchScript decoder takes: values from 0 to 1, ImageNet-normalised, or -1 to 1 (default: unit)",
    )
    parser.add_argument(
        "--decoder-size",
        type=number(int, 8, 4096),
        metavar="N",
        help="side to which pictures are brought for a TorchScript decoder that takes one size only",
    )


def load_decoder(arguments: argparse.Namespace) -> Extractor | None:
    """The decoder of --extractor; None for the keyed one."""
    if arguments.extractor in (None, "keyed"):
        return None
    from ..extractors.loading import load_extractor

    return load_extractor(
        arguments.extractor,
        allow_torchscript=arguments.allow_torchscript,
        values=arguments.decoder_input,
        size=arguments.decoder_size,
    )


def optional_key(path: str | None) -> Key | None:
    """The key of --key or of the environment, if there is one: others' decoders need it for messages only."""
    return load_key(path) if path is not None or ENVIRONMENT in os.environ else None


def extract_plain(arguments: argparse.Namespace, decoder: Extractor, device: str) -> int:
    """``onrw extract`` with another's decoder: the picture is read as it is, nothing is searched."""
    from .. import images
    from ..extractors.plain import read_plain
    from ..registry import Registry

    decoder.to(device)
    files = expand(arguments.inputs)
    key = optional_key(arguments.key)
    if key is None and (arguments.expect_id or arguments.registry):
        load_key(None)  # says how to give one
    expected = expected_bits(arguments, key, (decoder.num_bits,), f"{decoder.name} reads")
    registry = Registry(arguments.registry) if arguments.registry else None

    def read(file: Path) -> None:
        start = time.perf_counter()
        image = images.load(file).rgb
        reading = read_plain(decoder, image.to(device), key, arguments.fpr)
        seconds = time.perf_counter() - start
        message = reading.message
        bits = "".join(map(str, reading.bits.tolist()))
        agreed = match(reading.bits, expected)
        soft = {decoder.num_bits: reading.logits}
        found = known(registry, message, soft, image, key, arguments.fpr) if registry else None
        if arguments.json:
            json_line(
                input=str(file),
                detected=reading.detected,
                log10_p=round(reading.log10_p, 2),
                bits=bits,
                text=message.text,
                id=message.id,
                **({} if expected is None else {"match": agreed}),
                seconds=round(seconds, 3),
                **({} if found is None else found.fields()),
            )
            return
        if reading.detected:
            said = f"{message.kind} {message.value} ({p_value(reading.log10_p)})"
        elif reading.log10_p < 0:
            said = f"nothing found that is sure enough ({p_value(reading.log10_p)}; --fpr allows more)"
        else:
            said = "nothing found" if key else "bits alone, because there is no key"
        say(f"{file}: {said}; bits {bits}")
        for text in found.lines(registry) if found else ():
            say(f"  {text}")
        if expected is not None:
            say(f"  {sentence(agreed)}")

    return run_batch(files, read, name=lambda file: file)
