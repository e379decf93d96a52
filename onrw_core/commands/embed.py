"""``onrw embed``: mark photos."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..extractors import KEYED, LABELS, NO_LABEL
from ..models import load_model
from .common import Batch, Progress, add_key, add_overwrite, add_verbose, number, p_value
from .decoders import INPUTS, add_extractor, load_reader, reader_key
from .folders import KEEP, plan
from .kept import check_results, sides_of
from .models import add_device, add_model, chosen_device
from .output import json_line, remark, say

if TYPE_CHECKING:
    from ..extractors.base import Extractor
    from ..imaging.atomic import Undo
    from ..payload.keys import Key
    from ..payload.message import Message
    from ..payload.registry import Registry
    from .journal import Job, Outcome
    from .marker import Marker, Mask, Photo, Result, Source

__all__ = ["MIXES", "PRESETS", "add_arguments", "make_marker", "run"]

PRESETS = ("fast", "quick", "endure", "paper", "reference")
SUFFIXES = {KEEP: KEEP, "png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
REMEDY = "allow more --iterations, a lower {} or a larger --mask"
# The journal of a folder records all options but these: they do not change a result, or give it another name.
UNRECORDED = tuple(
    "run name inputs output registry note ray workers threads device again allow_torchscript format crf overwrite "
    "verbose json".split()
)
DIGESTED = tuple("key text id bits prompt mask".split())  # secrets, recorded as digests
# Options that earlier versions did not record, with the defaults at which their folders can be continued.
LATER = {"write_label": False, "decoder_input": INPUTS[0]}
MIXES = ("all", "regeneration", "upright", "geometric", "values", "none")

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="photos, or folders of them; or videos")
    parser.add_argument(
        "-o", "--output", metavar="OUT|DIR", required=True, help="marked photo or video, or folder of the results"
    )
    add_key(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--text", metavar="T", help="a short text: up to 10 ASCII characters or 9 bytes of UTF-8")
    what.add_argument(
        "--id",
        metavar="HEX",
        help="a hexadecimal id: 6 digits in 48 bits, up to 18 (default: an id of each photo's own, which follows from "
        "key, --seed and file, so that a photo that is marked twice gets the same id: to mark copies of one photo for "
        "several people, give each an --id or --text)",
    )
    what.add_argument("--bits", metavar="0101...", help="raw bits: 32, 48, 64, 96 or 128 digits 0 and 1")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="fast",
        help="settings of the method; endure: against regeneration by a model (img2img) as well, at quality 70 unless "
        "--quality is given (default: fast)",
    )
    how_visible = parser.add_mutually_exclusive_group()
    how_visible.add_argument(
        "--quality",
        type=number(float, 30, 98),
        metavar="Q",
        help="SSIMULACRA2 score of the marked photo: 90 (default, but of endure) is visually lossless, 70 high quality",
    )
    how_visible.add_argument(
        "--target-psnr",
        type=number(float, 20, 60),
        metavar="DB",
        help="PSNR in dB of the marked photo, used instead of --quality (default for third-party decoders: 42)",
    )
    parser.add_argument(
        "--spare",
        action="store_true",
        help="raise the quality above --quality where all attacks are still survived with a margin; takes longer",
    )
    parser.add_argument(
        "--iterations",
        type=number(int, 1, 10000),
        metavar="N",
        help="largest number of optimisation steps (default: as the preset)",
    )
    parser.add_argument(
        "--mix",
        choices=MIXES,
        help="attacks that the watermark is optimised against; regeneration: all attacks, and regeneration of the "
        "photo by a model, which takes longer (default: all; upright for third-party decoders)",
    )
    parser.add_argument(
        "--label",
        choices=LABELS,
        default=NO_LABEL,
        help="public label of a keyed watermark, which everybody can read with `onrw detect`, write and remove "
        "(default: none)",
    )
    parser.add_argument(
        "--no-public",
        action="store_true",
        help="embed no public layer: only the key detects the watermark, and not after rotation or scaling",
    )
    parser.add_argument(
        "--write-label",
        action="store_true",
        help="state the label in the metadata of the file as well (Digital Source Type, in XMP)",
    )
    parser.add_argument(
        "--again", action="store_true", help="mark photos again that carry a watermark of this key already"
    )
    parser.add_argument(
        "--prompt", default="", metavar="P", help="text that describes the photo, for the model (default: empty)"
    )
    add_model(parser)
    add_device(parser)
    add_extractor(parser)
    parser.add_argument(
        "--size",
        type=number(int, 64, 4096),
        metavar="N",
        help="working size of the shorter side, in pixels (default: its own, from 512 up to four megapixels in all; "
        "above one with fewer iterations)",
    )
    parser.add_argument("--mask", metavar="FILE", help="image that is white where the photo may be marked")
    parser.add_argument(
        "--seed", type=number(int, 0, 2**53), default=0, metavar="S", help="seed of all random draws (default: 0)"
    )
    parser.add_argument(
        "--registry", metavar="FILE", help="registry file for the ids (created if missing); see `onrw lookup`"
    )
    parser.add_argument("--note", default="", metavar="T", help="text to store with the id in the registry")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS|local",
        help="mark on the Ray cluster at this address, or on a local cluster on this machine",
    )
    parser.add_argument(
        "--workers",
        type=number(int, 1, 10000),
        metavar="N",
        help="number of workers of the cluster (default: one per GPU, or by cores)",
    )
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        metavar="N",
        help="CPU threads of each worker, or of this process without --ray",
    )
    parser.add_argument(
        "--format",
        choices=SUFFIXES,
        default=KEEP,
        help="file format of the results in a folder (default: that of each photo; PNG for GIF, AVIF, palettes and "
        "CMYK)",
    )
    parser.add_argument(
        "--crf",
        type=number(int, 0, 51),
        default=18,
        metavar="N",
        help="of videos: constant rate factor of the encoder, lower is better and larger (default: 18)",
    )
    add_overwrite(parser)
    add_verbose(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def run(arguments: argparse.Namespace) -> int:
    if arguments.ray is None and arguments.workers is not None:
        raise ValueError("--workers: needs a cluster; add --ray local for a cluster on this machine")

    from ..imaging import files as images
    from ..imaging.atomic import remove_abandoned
    from ..imaging.video import is_video
    from ..payload.registry import perceptual_hash
    from ..stages.noise_optimisation import preset_for
    from .journal import Journal, attempt, finish_all, local
    from .marker import Source, load_mask
    from .messages import Messages

    key = reader_key(arguments, needed=arguments.bits is None)
    extractor = load_reader(arguments, key)
    preset_for(arguments.preset, extractor)  # raises an error before the work starts
    if arguments.quality is not None and "target_psnr" in extractor.marking:
        raise ValueError(
            f"--quality: the decoder {extractor.name} needs --target-psnr instead; the quality is reported"
        )
    if arguments.write_label and arguments.label == NO_LABEL:
        raise ValueError("--write-label: states the public label; give one with --label")
    if arguments.label != NO_LABEL and extractor.name != KEYED:
        raise ValueError("--label: the watermark of a third-party decoder has no public layer; leave it out")
    if arguments.no_public and arguments.label != NO_LABEL:
        raise ValueError("--no-public: leaves no place for a --label; give one of the two")
    if arguments.spare and (arguments.target_psnr is not None or "target_psnr" in extractor.marking):
        raise ValueError("--spare: raises the quality; use it with --quality, not with --target-psnr")
    if any(is_video(name) and not Path(name).is_dir() for name in arguments.inputs):
        from .videos import embed_videos

        given = _message(arguments, key, extractor.sizes)
        mask = load_mask(arguments.mask) if arguments.mask else None
        return embed_videos(arguments, make_marker(arguments, key, mask, extractor), given, _registry(arguments, given))
    journal = Journal(Path(arguments.output), _options(arguments, key))
    planned = plan(arguments.inputs, arguments.output, arguments.overwrite, journal.expects, SUFFIXES[arguments.format])
    jobs = planned.jobs
    kept = [("the folder's journal", str(journal.path)), *sides_of(arguments.registry)]
    check_results(arguments, [("output", result) for _, result in jobs], others=kept)
    check_results(arguments, [("journal", journal.path)], inputs=True)

    given = _message(arguments, key, extractor.sizes)
    registry = _registry(arguments, given)
    mask = load_mask(arguments.mask) if arguments.mask else None
    takes_psnr = arguments.target_psnr is not None or "target_psnr" in extractor.marking
    remedy = REMEDY.format("--target-psnr" if takes_psnr else "--quality")
    batch, stdout = Batch(planned.total), sys.stdout  # a Ray cluster redirects sys.stdout to stderr
    for file, error in planned.refused:
        batch.place()
        batch.failed(file, error)
    for folder in {result.parent for _, result in jobs}:
        remove_abandoned(folder)

    noted_otherwise: list[Path] = []  # results that are registered with another note
    messages = Messages(given, key, arguments.seed, extractor.num_bits, journal, registry)

    def read(job: Job) -> Source | None:
        source, result = job
        content = images.read(source)
        if journal.done(job, content, arguments.overwrite):
            entry = journal.entry(result)
            registered = registry.of_file(entry.output) if entry and registry else []
            if arguments.note and registered and all(known.note != arguments.note for known in registered):
                noted_otherwise.append(result)
            if entry and registry and not registered:  # marked by a run without --registry
                written = images.load(result).rgb
                seen = extractor.read(written, key).thumbnail(written)
                register(messages.noted(entry), entry.output, perceptual_hash(written), str(seen or ""))
            return None
        digest = hashlib.sha256(content).hexdigest()
        message = messages.take(digest, lambda: perceptual_hash(images.load(source, content).rgb))
        return Source(content, digest, message)

    def finish(job: Job, outcome: Outcome) -> None:
        """Save a result, record it in registry and journal, and print it."""
        source, result = job
        place = batch.place()
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is None:
                batch.skipped += 1
                return
            overwrite = arguments.overwrite or journal.replaces(result)
            images.check_free(result, source, overwrite)
            images.write(result, outcome.content, commit=lambda: note(result, outcome), overwrite=overwrite)
            batch.unreadable += not outcome.readable
            _show(arguments, place, job, outcome, remedy, stdout)
        except Exception as error:
            batch.failed(source, error)

    def note(result: Path, outcome: Result) -> Undo:
        undo = None
        if registry:
            undo = register(
                outcome.message, hashlib.sha256(outcome.content).hexdigest(), outcome.perceptual_hash, outcome.thumbnail
            )
        try:
            if journal.holds(result):  # a folder of results
                id = messages.name(outcome.message)
                journal.note(result, outcome.content, outcome.digest, readable=outcome.readable, id=id)
        except Exception:
            if undo is not None:
                undo()
            raise
        return undo

    def register(message: Message, file_hash: str, image_hash: str, thumbnail: str) -> Undo:
        assert registry is not None
        return registry.add_for_result(
            message.value,
            file_hash=file_hash,
            perceptual_hash=image_hash,
            thumbnail=thumbnail,
            note=arguments.note,
            own=given is None,
        )

    if arguments.ray is not None:
        from .cluster import stream

        outcomes = stream(
            jobs,
            read,
            make_marker,
            (arguments, key, mask),
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
        marker = make_marker(arguments, key, mask, extractor)

        def decode(job: Job) -> Photo | None:
            source = read(job)
            return None if source is None else marker.decode(job, source)

        def work(photo: Photo) -> Photo:
            with Progress(photo.job[0].name) as progress:
                return marker.optimise(photo, progress)

        outcomes = local(jobs, decode, work)
        finish_all(outcomes, lambda job, photo: finish(job, attempt(marker.encode, photo)))
    if batch.skipped:
        remark(f"{batch.skipped} of {batch.total} photos were already marked")
    if noted_otherwise:
        log.warning(
            "--note: not stored for %d photos that %s has with another note, which is kept; for a second note, give "
            "another --registry file",
            len(noted_otherwise),
            arguments.registry,
        )
    return batch.code


def make_marker(
    arguments: argparse.Namespace,
    key: Key | None,
    mask: Mask | None,
    extractor: Extractor | None = None,
) -> Marker:
    """The marker of these options, also on another machine of a cluster."""
    from ..stages.noise_optimisation import preset_for
    from .marker import Marker

    extractor = extractor or load_reader(arguments, key)
    settings = preset_for(arguments.preset, extractor)
    settings = replace(settings, label=None if arguments.no_public else arguments.label, again=arguments.again)
    return Marker(
        load_model(arguments.model, chosen_device(arguments.device), arguments.config),
        settings.with_(
            quality=arguments.quality,
            target_psnr=arguments.target_psnr,
            iterations=arguments.iterations,
            mix=arguments.mix,
            spare=arguments.spare,
        ),
        extractor=extractor,
        key=key,
        mask=mask,
        prompt=arguments.prompt,
        size=arguments.size,
        seed=arguments.seed,
        write_label=arguments.write_label,
    )


def _show(arguments: argparse.Namespace, place: str, job: Job, result: Result, remedy: str, to: TextIO) -> None:
    """Print the result of a photo and its place in the batch.

    A warning with the remedy says if its watermark is unreadable or weak.
    """
    from ..payload.message import bit_string

    message, (source, output) = result.message, job
    bits = bit_string(message.bits)
    decoded = result.decoded_quality
    if not result.readable:
        found = "no watermark with this message is found in it"
        if result.wrong is not None:
            found = f"{result.wrong} of {len(bits)} bits are wrong"
        log.warning("%s: written, but its watermark cannot be read: %s; %s", output, found, remedy)
    elif result.wrong:
        log.warning(
            "%s: its watermark is weak: %d of %d bits had to be corrected; %s", output, result.wrong, len(bits), remedy
        )
    elif result.robustness is not None:
        log.warning("%s: its watermark is weak: %s; %s", output, result.robustness, remedy)
    if arguments.json:
        json_line(
            to=to,
            input=str(source),
            output=str(output),
            bits=bits,
            ssimulacra2=round(result.judgement.quality, 2),
            ssimulacra2_decoded=None if decoded is None else round(decoded, 2),
            worst=round(result.judgement.worst, 2),
            psnr=round(result.psnr, 3),
            ssim=round(result.ssim, 5),
            iterations=result.iterations,
            seconds=round(result.seconds, 2),
            detected=result.found,
            readable=result.readable,
            bits_after_attacks=None if result.robustness is None else round(result.robustness.bits, 3),
            log10_p=round(result.log10_p, 2),
        )
        return
    shown = f"{len(bits)} raw bits, " if message.kind == "raw" else f"{message.kind} {message.value}, "
    if arguments.verbose:
        shown += f"bits {bits}, "
    say(
        f"{place}{source} -> {output}: {shown}SSIMULACRA2 {result.judgement.quality:.1f}"
        f"{'' if decoded is None else f' ({decoded:.1f} with the compression of the file)'}, "
        f"worst place {result.judgement.worst:.1f}, {result.psnr:.2f} dB, "
        f"{result.iterations} iterations, {result.seconds:.0f} s, "
        f"{'read back' if result.readable else 'NOT read back'} ({p_value(result.log10_p)})",
        to,
    )


def _options(arguments: argparse.Namespace, key: Key | None) -> dict[str, str | float | None]:
    """The options that the results depend on, for the journal: all but those that are known not to matter."""
    from ..imaging import files as images
    from .journal import keyed

    message = json.dumps([arguments.text, arguments.id, arguments.bits])
    mask = hashlib.sha256(images.read(arguments.mask)).hexdigest() if arguments.mask else None
    plain = {name: value for name, value in vars(arguments).items() if name not in (*UNRECORDED, *DIGESTED)}
    return {
        **{
            f"--{name.replace('_', '-')}": None if name in LATER and value == LATER[name] else value
            for name, value in plain.items()
        },
        "--key": keyed(key, "key", ""),
        "--text, --id or --bits": keyed(key, "message", message),
        "--prompt": keyed(key, "prompt", arguments.prompt) if arguments.prompt else None,
        "--mask": mask and keyed(key, "mask", mask),
    }


def _message(arguments: argparse.Namespace, key: Key | None, sizes: tuple[int, ...]) -> Message | None:
    """The message of all photos, of one of the numbers of bits `sizes`; None for an id of each photo's own."""
    from ..payload.message import capacity, encode_id, encode_text, raw

    num_bits = sizes[0] if len(sizes) == 1 else None
    assert key is not None or arguments.bits is not None  # see `reader_key`
    if arguments.text is not None and key is not None:
        return encode_text(arguments.text, key, num_bits)
    if arguments.id is not None and key is not None:
        return encode_id(arguments.id, key, num_bits)
    if arguments.bits is None:
        if num_bits is not None:
            capacity(num_bits)  # raises an error before the work starts
        return None
    message = raw(arguments.bits)
    if len(message.bits) not in sizes:
        raise ValueError(f"--bits: {len(message.bits)} bits; a watermark carries one of {', '.join(map(str, sizes))}")
    return message


def _registry(arguments: argparse.Namespace, given: Message | None) -> Registry | None:
    """The registry of --registry, or None."""
    if arguments.registry is None:
        if arguments.note:
            raise ValueError("--note: is stored in a registry; add --registry FILE")
        return None
    if given is not None and given.kind != "id":
        raise ValueError(
            "--registry: takes ids only; give --id, or no message for an id of the photo, and put the text into --note"
        )
    from ..payload.registry import Registry

    return Registry.create(arguments.registry)
