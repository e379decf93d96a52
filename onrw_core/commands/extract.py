"""``onrw extract``: read marks from photos alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_fpr, add_key, expand, json_line, load_key, p_value, run_batch, say
from .decoders import add_extractor, extract_plain, load_decoder
from .expected import add_expected, expected_bits, match, sentence
from .lookup import known
from .models import add_device, chosen_device

if TYPE_CHECKING:
    from torch import Tensor

    from ..detection import Reading
    from ..message import Decoded

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="photos, or folders of them")
    add_key(parser)
    add_expected(parser)
    add_fpr(parser)
    add_extractor(parser)
    add_device(parser)
    parser.add_argument(
        "--registry", metavar="FILE", help="say what is noted of the id in this file; find it there if it is damaged"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="read photos as they are and do not search for rotation and scale; for many photos, most of them unmarked",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    decoder = load_decoder(arguments)
    if decoder is not None:
        return extract_plain(arguments, decoder, chosen_device(arguments.device))
    key = load_key(arguments.key)
    files = expand(arguments.inputs)

    from .. import images
    from ..extractors.keyed import KeyedExtractor
    from ..message import ID_BITS, SIZES, Decoded, decode
    from ..registry import Registry
    from ..threads import in_order

    expected = expected_bits(arguments, key, SIZES, "a mark carries one of")
    registry = Registry(arguments.registry) if arguments.registry else None
    extractor = KeyedExtractor(key, ID_BITS if expected is None else len(expected))

    def read(file: Path) -> tuple[Reading, Tensor | None]:
        image = images.load(file).rgb
        reading = extractor.read(image, search=not arguments.plain, fpr=arguments.fpr)
        return reading, image if registry else None  # large, and only the registry looks at it again

    def tell(file: Path, reading: Reading, image: Tensor | None) -> None:
        if reading.detected:
            bits, message = reading.bits, decode(reading.logits, key)
        else:  # a best guess, and as many bits as were asked for: their number is a guess as well
            bits, message = (extractor.guess(reading) > 0).long(), Decoded()
        agreed = match(bits, expected)
        found = known(registry, message, reading, image, key, arguments.fpr) if registry else None
        if arguments.json:
            json_line(
                input=str(file),
                detected=reading.detected,
                log10_p=round(reading.log10_p, 2),
                bits="".join(map(str, bits.tolist())),
                text=message.text,
                id=message.id,
                **({} if expected is None else {"match": agreed}),
                geometry={
                    "rotation": round(reading.rotation, 3),
                    "scale": round(reading.scale, 5),
                    "shift": [round(value, 2) for value in reading.shift],
                },
                seconds=round(reading.seconds, 3),
                **({} if found is None else found.fields()),
            )
            return
        say(f"{file}: {_sentence(reading, message, bits)}")
        for text in found.lines(registry) if found else ():
            say(f"  {text}")
        if expected is not None:
            say(f"  {sentence(agreed)}")

    if len(files) == 1:  # all threads for one photo
        return run_batch(files, lambda file: tell(file, *read(file)), name=lambda file: file)
    batch = in_order(read, files)
    return run_batch(batch, lambda done: tell(done[0], *done[1].result()), name=lambda done: done[0], total=len(files))


def _sentence(reading: Reading, message: Decoded, bits: Tensor) -> str:
    if not reading.detected:
        return f"nothing found ({p_value(reading.log10_p)})"
    if message.kind:
        found = f"{message.kind} {message.value}"
    elif message.version:
        found = "a message of a later version; update onrw to read it"
    else:
        found = f"no message, bits {''.join(map(str, bits.tolist()))}"
    flip = ", mirrored" if reading.flipped else ""
    return (
        f"marked ({p_value(reading.log10_p)}), {found}; rotation {reading.rotation:.1f} degrees, "
        f"scale {reading.scale:.3f}{flip}"
    )
