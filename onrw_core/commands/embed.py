"""``onrw embed``: mark photos."""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .common import Progress, add_key, add_overwrite, json_line, load_key, number, p_value, plan, run_batch, say
from .models import add_model, load_model

if TYPE_CHECKING:
    from torch import Tensor

    from ..keys import Key
    from ..message import Message
    from ..registry import Registry

__all__ = ["PRESETS", "add_arguments", "run"]

PRESETS = ("fast", "paper", "reference")
ASPECT_TOLERANCE = 0.02  # between a mask and the photo it is for

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
        "--id", metavar="HEX", help="a hexadecimal id: 6 digits in 48 bits, up to 18 (default: a random one)"
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
        "--prompt", default="", metavar="P", help="what the photo shows, for the model (default: nothing)"
    )
    add_model(parser)
    parser.add_argument(
        "--size", type=number(int, 64, 4096), default=512, metavar="N", help="working size of the shorter side (512)"
    )
    parser.add_argument("--mask", metavar="FILE", help="picture that is white where the mark may lie")
    parser.add_argument("--seed", type=number(int, 0, 2**53), default=0, metavar="S", help="random draws (default: 0)")
    parser.add_argument("--registry", metavar="FILE", help="note ids in this file (made if missing); see `onrw lookup`")
    parser.add_argument("--note", default="", metavar="T", help="what to note beside the id in the registry")
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    key = load_key(arguments.key)
    jobs = plan(arguments.inputs, arguments.output, arguments.overwrite)

    import torch

    from .. import images, pipeline
    from ..extractors.keyed import KeyedExtractor
    from ..message import random_id
    from ..optimise import PRESETS as SETTINGS
    from ..registry import perceptual_hash

    given = _message(arguments, key)
    registry = _registry(arguments, given)
    mask = _load_mask(arguments.mask) if arguments.mask else None
    settings = SETTINGS[arguments.preset].with_(target_psnr=arguments.target_psnr, iterations=arguments.iterations)
    loaded = load_model(arguments.model)
    positive, null = loaded.encode(arguments.prompt), loaded.encode("")

    def mark(job: tuple[Path, Path]) -> None:
        source, result = job
        picture = images.load(source)
        images.check_alpha(result, picture)  # before the work
        message = given or random_id(key)
        extractor = KeyedExtractor(key, len(message.bits))
        with Progress(source.name) as progress:
            marked = pipeline.embed(
                picture.rgb,
                loaded.model,
                loaded.autoencoder,
                extractor,
                message.bits,
                positive=positive,
                null=null,
                settings=settings,
                generator=torch.Generator().manual_seed(arguments.seed),
                size=arguments.size,
                mask=None if mask is None else _fit(mask, picture.rgb, arguments.mask, source),
                on_inversion=progress.inversion,
                on_state=progress.optimisation,
            )
        images.save(result, marked.image, like=picture, overwrite=arguments.overwrite)
        # The file itself is read back: what it holds is what counts, compression included.
        written = images.load(result).rgb
        reading = extractor.read(written)
        same_size = reading.num_bits == len(message.bits)
        wrong = int((reading.bits != message.bits).sum()) if same_size else len(message.bits)
        if not reading.detected or wrong:
            log.warning(
                "%s: reads back with %d of %d bits wrong; allow more --iterations or a lower --target-psnr",
                result,
                wrong,
                len(message.bits),
            )
        if registry is not None:
            registry.add(
                message.value,
                file_hash=hashlib.sha256(result.read_bytes()).hexdigest(),
                perceptual_hash=perceptual_hash(written),
                note=arguments.note,
                prompt_hash=hashlib.sha256(arguments.prompt.encode()).hexdigest() if arguments.prompt else "",
            )
        bits = "".join(map(str, message.bits.tolist()))
        if arguments.json:
            json_line(
                input=str(source),
                output=str(result),
                bits=bits,
                psnr=round(marked.psnr, 3),
                ssim=round(marked.ssim, 5),
                iterations=marked.iterations,
                seconds=round(marked.seconds, 2),
                detected=reading.detected,
                log10_p=round(reading.log10_p, 2),
            )
        else:
            shown = "" if message.kind == "raw" else f"{message.kind} {message.value}, "
            say(
                f"{source} -> {result}: {shown}bits {bits}, {marked.psnr:.2f} dB, SSIM {marked.ssim:.4f}, "
                f"{marked.iterations} iterations, {marked.seconds:.0f} s, "
                f"{'read back' if reading.detected else 'NOT read back'} ({p_value(reading.log10_p)})"
            )

    return run_batch(jobs, mark, name=lambda job: job[0])


def _message(arguments: argparse.Namespace, key: Key) -> Message | None:
    """What all photos are marked with; None for an id of its own for each."""
    from ..message import SIZES, encode_id, encode_text, raw

    if arguments.text is not None:
        return encode_text(arguments.text, key)
    if arguments.id is not None:
        return encode_id(arguments.id, key)
    if arguments.bits is None:
        return None
    message = raw(arguments.bits)
    if len(message.bits) not in SIZES:
        raise ValueError(f"--bits: {len(message.bits)} bits; a mark carries one of {', '.join(map(str, SIZES))}")
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


def _load_mask(path: str) -> Tensor:
    """A picture's luminance as a mask, (1, 1, H, W)."""
    from .. import images

    mask = images.load(path).rgb.mean(0)[None, None]
    if not mask.any():
        raise ValueError(f"mask {path}: all black; paint it white where the mark may lie")
    return mask


def _fit(mask: Tensor, rgb: Tensor, mask_path: str, source: Path) -> Tensor:
    """The mask at the photo's size."""
    import torch.nn.functional as F

    (height, width), (h, w) = rgb.shape[-2:], mask.shape[-2:]
    if abs(w * height / (h * width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{source}: is {width}x{height} and the mask {mask_path} {w}x{h}; give a mask of the same shape"
        )
    return F.interpolate(mask, size=(height, width), mode="bilinear", align_corners=False)
