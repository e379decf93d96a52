"""``onrw embed``: mark photos."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .common import Batch, Progress, add_key, add_overwrite, json_line, load_key, number, p_value, plan, say
from .decoders import add_extractor, load_decoder, optional_key
from .models import add_device, add_model, chosen_device, load_model

if TYPE_CHECKING:
    from torch import Tensor

    from ..extractors.base import Extractor
    from ..folder import Job, Outcome
    from ..keys import Key
    from ..message import Message
    from ..registry import Registry
    from .marker import Marker, Photo, Result

__all__ = ["MIXES", "PRESETS", "add_arguments", "make_marker", "run"]

PRESETS = ("fast", "paper", "reference")
MIXES = ("all", "regeneration", "upright", "geometric", "values", "none")

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="photos, or folders of them")
    parser.add_argument(
        "-o", "--output", metavar="OUT|DIR", required=True, help="marked photo, or a folder for PNG files"
    )
    add_key(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--text", metavar="T", help="a short text: up to 10 ASCII characters or 9 bytes of UTF-8")
    what.add_argument(
        "--id", metavar="HEX", help="a hexadecimal id: 6 digits in 48 bits, up to 18 (default: each photo's own)"
    )
    what.add_argument("--bits", metavar="0101...", help="raw bits: 32, 48, 64, 96 or 128 of them")
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="how much is done (default: fast)")
    parser.add_argument(
        "--target-psnr", type=number(float, 20, 60), default=42.0, metavar="DB", help="quality (default: 42)"
    )
    parser.add_argument(
        "--iterations", type=number(int, 1, 10000), metavar="N", help="steps at most (default: preset's)"
    )
    parser.add_argument(
        "--mix",
        choices=MIXES,
        help="attacks that the mark learns to survive; with regeneration, all and models that make the picture anew, "
        "which takes longer (default: the preset's, all; upright for --extractor)",
    )
    parser.add_argument(
        "--prompt", default="", metavar="P", help="what the photo shows, for the model (default: nothing)"
    )
    add_model(parser)
    add_device(parser)
    add_extractor(parser)
    parser.add_argument(
        "--size", type=number(int, 64, 4096), default=512, metavar="N", help="working size of the shorter side (512)"
    )
    parser.add_argument("--mask", metavar="FILE", help="picture that is white where the mark may lie")
    parser.add_argument("--seed", type=number(int, 0, 2**53), default=0, metavar="S", help="random draws (default: 0)")
    parser.add_argument("--registry", metavar="FILE", help="note ids in this file (made if missing); see `onrw lookup`")
    parser.add_argument("--note", default="", metavar="T", help="what to note beside the id in the registry")
    parser.add_argument(
        "--ray", metavar="ADDRESS|local", help="mark on the Ray cluster there, or on one of this machine's own"
    )
    parser.add_argument(
        "--workers", type=number(int, 1, 10000), metavar="N", help="of the cluster (default: one per GPU, or by cores)"
    )
    parser.add_argument(
        "--threads", type=number(int, 1, 1024), metavar="N", help="of each worker, or of this process without --ray"
    )
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    if arguments.ray is None and arguments.workers is not None:
        raise ValueError("--workers: is for a cluster; give --ray local for one of this machine's own")

    from .. import images
    from ..folder import Journal, attempt, finish_all, local
    from .marker import load_mask

    decoder = load_decoder(arguments)
    key = load_key(arguments.key) if decoder is None or arguments.bits is None else optional_key(arguments.key)
    journal = Journal(Path(arguments.output), _options(arguments, key))
    jobs = plan(arguments.inputs, arguments.output, arguments.overwrite, journal.expects)

    given = _message(arguments, key, None if decoder is None else decoder.num_bits)
    registry = _registry(arguments, given)
    mask = load_mask(arguments.mask) if arguments.mask else None
    batch, stdout = Batch(len(jobs)), sys.stdout  # Ray's cluster turns the name to stderr

    def read(job: Job) -> bytes | None:
        content = images.read(job[0])
        return None if journal.done(job, content, arguments.overwrite) else content

    def finish(job: Job, outcome: Outcome) -> None:
        """Save a result, note it and say it."""
        source, result = job
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is None:
                batch.skipped += 1
                return
            images.check_free(result, source, arguments.overwrite)
            images.write(result, outcome.content, commit=lambda: note(result, outcome))
            _show(arguments.json, job, outcome, stdout)
        except Exception as error:
            batch.failed(source, error)

    def note(result: Path, outcome: Result) -> None:
        if registry is not None:
            registry.add(
                outcome.message.value,
                file_hash=hashlib.sha256(outcome.content).hexdigest(),
                perceptual_hash=outcome.perceptual_hash,
                note=arguments.note,
                prompt_hash=hashlib.sha256(arguments.prompt.encode()).hexdigest() if arguments.prompt else "",
            )
        if result.parent == journal.path.parent:  # a folder of results
            journal.note(result, outcome.content, outcome.digest)

    if arguments.ray is not None:
        from ..cluster import stream

        outcomes = stream(
            jobs,
            read,
            make_marker,
            (arguments, key, given, mask),
            address=arguments.ray,
            workers=arguments.workers,
            threads=arguments.threads,
            gpu=arguments.device != "cpu",
        )
        finish_all(outcomes, finish)
    else:
        import torch

        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        marker = make_marker(arguments, key, given, mask, decoder)

        def decode(job: Job) -> Photo | None:
            content = read(job)
            return None if content is None else marker.decode(job, content)

        def work(photo: Photo) -> Photo:
            with Progress(photo.job[0].name) as progress:
                return marker.optimise(photo, progress)

        outcomes = local(jobs, decode, work)
        finish_all(outcomes, lambda job, photo: finish(job, attempt(marker.encode, photo)))
    if batch.skipped:
        print(f"onrw: {batch.skipped} of {batch.total} photos were marked already", file=sys.stderr)
    return batch.code


def make_marker(
    arguments: argparse.Namespace,
    key: Key | None,
    message: Message | None,
    mask: Tensor | None,
    decoder: Extractor | None = None,
) -> Marker:
    """What marks photos, here or on another machine of a cluster."""
    from .marker import Marker

    decoder = decoder or load_decoder(arguments)
    return Marker(arguments, load_model(arguments.model, chosen_device(arguments.device)), decoder, key, message, mask)


def _show(as_json: bool, job: Job, result: Result, to: TextIO) -> None:
    """Say what became of a photo."""
    message, (source, output) = result.message, job
    bits = "".join(map(str, message.bits.tolist()))
    if not result.found or result.wrong:
        log.warning(
            "%s: reads back with %d of %d bits wrong; allow more --iterations or a lower --target-psnr",
            output,
            result.wrong,
            len(bits),
        )
    if as_json:
        json_line(
            to=to,
            input=str(source),
            output=str(output),
            bits=bits,
            psnr=round(result.psnr, 3),
            ssim=round(result.ssim, 5),
            iterations=result.iterations,
            seconds=round(result.seconds, 2),
            detected=result.found,
            log10_p=round(result.log10_p, 2),
        )
        return
    shown = "" if message.kind == "raw" else f"{message.kind} {message.value}, "
    say(
        f"{source} -> {output}: {shown}bits {bits}, {result.psnr:.2f} dB, SSIM {result.ssim:.4f}, "
        f"{result.iterations} iterations, {result.seconds:.0f} s, "
        f"{'read back' if result.found else 'NOT read back'} ({p_value(result.log10_p)})",
        to,
    )


def _options(arguments: argparse.Namespace, key: Key | None) -> dict[str, str | float | None]:
    """What the marks depend on beside the photos, for the journal."""
    from .. import images
    from ..folder import keyed

    message = json.dumps([arguments.text, arguments.id, arguments.bits])
    mask = hashlib.sha256(images.read(arguments.mask)).hexdigest() if arguments.mask else None
    return {
        **{
            f"--{name.replace('_', '-')}": getattr(arguments, name)
            for name in ("preset", "target_psnr", "iterations", "mix", "model", "extractor", "size", "seed")
        },
        "--key": keyed(key, "key", ""),
        "--text, --id or --bits": keyed(key, "message", message),
        "--prompt": keyed(key, "prompt", arguments.prompt) if arguments.prompt else None,
        "--mask": mask and keyed(key, "mask", mask),
    }


def _message(arguments: argparse.Namespace, key: Key | None, num_bits: int | None) -> Message | None:
    """What all photos are marked with, in `num_bits` where the decoder says how many; None for an id for each."""
    from ..message import SIZES, capacity, encode_id, encode_text, raw

    if arguments.text is not None:
        return encode_text(arguments.text, key, num_bits)
    if arguments.id is not None:
        return encode_id(arguments.id, key, num_bits)
    if arguments.bits is None:
        if num_bits is not None:
            capacity(num_bits)  # before the work
        return None
    message = raw(arguments.bits)
    sizes = SIZES if num_bits is None else (num_bits,)
    if len(message.bits) not in sizes:
        raise ValueError(f"--bits: {len(message.bits)} bits; a mark carries one of {', '.join(map(str, sizes))}")
    return message


def _registry(arguments: argparse.Namespace, given: Message | None) -> Registry | None:
    """The registry of --registry."""
    if arguments.registry is None:
        if arguments.note:
            raise ValueError("--note: is written into a registry; give --registry FILE")
        return None
    if given is not None and given.kind != "id":
        raise ValueError("--registry: takes ids; mark an --id, or none for a random one, and put the text into --note")
    from ..registry import Registry

    return Registry.create(arguments.registry)
