"""``onrw extract``: read watermarks from photos, without the originals."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..extractors import MOST_FRAMES
from .common import Progress, add_fpr, add_key, add_verbose, number, p_value, run_batch
from .decoders import add_extractor, load_reader, reader_key
from .expected import add_expected, expected_bits, fields, sentence
from .folders import expand
from .lookup import COPIED, known
from .models import add_device, chosen_device
from .output import json_line, say

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

    from ..extractors.reading import Reading
    from ..payload.keys import Key

__all__ = ["FRAMES", "add_arguments", "run"]

FRAMES = 8  # of a video that are read together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="photos, or folders of them; or videos")
    add_key(parser)
    add_expected(parser)
    add_fpr(parser)
    add_extractor(parser)
    add_device(parser)
    parser.add_argument(
        "--registry",
        metavar="FILE",
        help="show the entries of the id in this registry; identify damaged ids among those registered",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="read without a search for rotation and scale; faster for many photos, most of them unmarked",
    )
    add_verbose(parser)
    parser.add_argument(
        "--frames",
        type=number(int, 1, MOST_FRAMES),
        default=FRAMES,
        metavar="N",
        help=f"of videos: read so many frames together, at even distances of time (default: {FRAMES})",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="if nothing is found, search rotations of +-10 degrees and scales of .7 to 1.4 by the key alone, for "
        "images whose public layer is gone; takes minutes",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    key = reader_key(arguments, needed=bool(arguments.expect_id or arguments.registry))
    extractor = load_reader(arguments, key).to(chosen_device(arguments.device))
    files = expand(arguments.inputs)

    from ..imaging import files as images
    from ..imaging.video import is_video, sample
    from ..payload.registry import Registry
    from .threads import in_order

    expected = expected_bits(arguments, key, extractor)
    if expected is not None:
        extractor = extractor.for_bits(len(expected))
    registry = Registry(arguments.registry) if arguments.registry else None

    def read(file: Path) -> tuple[Reading, Tensor | None]:
        image = sample(file, arguments.frames) if is_video(file) else images.load(file).rgb
        options = {"search": not arguments.plain, "fpr": arguments.fpr}
        if arguments.deep:
            with Progress(file.name) as progress:
                reading = extractor.read(image, key, deep=True, progress=progress.deep_search, **options)
        else:
            reading = extractor.read(image, key, **options)
        if registry is None:
            return reading, None  # large, and only the registry needs it again
        return reading, image if image.ndim == 3 else image[0]

    def tell(place: str, file: Path, reading: Reading, image: Tensor | None) -> None:
        found = None
        if registry and key and image is not None:
            found = known(registry, extractor, reading, image, key, arguments.fpr)
        match = None if expected is None else reading.match(expected)
        if arguments.json:
            line = {"input": str(file), **reading.fields()}
            if expected is not None:
                line["match"] = fields(match)
            if found is not None:
                line |= found.fields()
            json_line(**line)
            return
        say(f"{place}{file}: {_sentence(reading, key, arguments.verbose)}")
        for text in found.lines() if found else ():
            say(f"  {text}")
        if found is not None and found.copied:
            say(f"  {COPIED}")
        if expected is not None:
            say(f"  {sentence(match)}")

    if len(files) == 1:  # all threads for one photo
        return run_batch(files, lambda file, place: tell(place, file, *read(file)), name=lambda file: file)
    batch = in_order(read, files)

    def work(done: tuple[Path, Future], place: str) -> None:
        tell(place, done[0], *done[1].result())

    return run_batch(batch, work, name=lambda done: done[0], total=len(files))


def _sentence(reading: Reading, key: Key | None, verbose: bool) -> str:
    """A reading in words; `verbose` adds the raw bits."""
    from ..payload.message import bit_string

    message, pose = reading.message, reading.pose
    bits = f"; bits {bit_string(reading.bits)}" if verbose else ""
    if key is None:
        return f"{reading.num_bits} bits were read; their message needs the key{bits or '; --verbose prints them'}"
    if not reading.detected:
        return f"nothing found ({p_value(reading.log10_p)}){bits}"
    if message.kind:
        found = f"{message.kind} {message.value}"
    elif message.version:
        found = "a message of a later version; update onrw to read it"
    else:
        found = "no message"
    where = ""
    if pose is not None:
        flip = ", mirrored" if pose.flipped else ""
        where = f"; rotation {pose.rotation:.1f} degrees, scale {pose.scale:.3f}{flip}"
    return f"marked ({p_value(reading.log10_p)}), {found}{where}{bits}"
