"""`onrw bench clip`: flicker, time, and reading after H.264 of clips that are marked as one, and what averaging gives.

Two clips are made: a pan over the first photo, and a drawing that moves over the second. Each is marked as a clip; for
comparison, its first frames are marked separately, as images are. The tables have

- flicker: the root mean square difference of the residuals of successive frames, in levels of 255, at the same pixels
  and along the motion of the scene; the rounding of two frames to 8 bit alone gives .41;
- the time of each frame after the first;
- the share of seeded triples of frames from which the message is read, by the constant rate factor of H.264;
- averaging: the cosine of the residual with an adversary's estimate of it, which is the mean of N frames without their
  smooth content.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files as resources
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..commands.marker import Marker
from ..extractors.keyed.extractor import KeyedExtractor
from ..imaging import files as images
from ..imaging.convolve import gaussian_blur
from ..imaging.geometry import size_of
from ..imaging.registration import Shift, translated
from ..imaging.rounding import LEVELS, round_8bit
from ..imaging.video import read_frames, write_frames
from ..models import load_model
from ..payload.keys import Key
from ..payload.message import encode_text
from ..pipeline import Marked
from ..stages.noise_optimisation import PRESETS
from .cache import publish
from .photos import load_photos

__all__ = ["add_arguments", "run"]

TEXT = "Ann 5"
RATE = Fraction(24)  # frames a second
PANNED = 0.75  # width of a panning frame, of the photo's
DRAWING = 5 / 16  # side of the drawing, of the frame's shorter side
SMOOTH = 2.0  # pixels: what an adversary takes for content
AVERAGED = (1, 4, 24)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench clip`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of unmarked photos; the first two are used")
    add("--match", default="*", help="only files of that pattern")
    add("--size", type=int, default=512, help="shorter side of the frames in pixels (default: 512)")
    add("--frames", type=int, default=24, help="frames of each clip (default: 24)")
    add("--separate", type=int, default=3, help="frames that are marked separately for comparison (default: 3)")
    add("--preset", choices=tuple(PRESETS), default="quick", help="of the first frame (default: quick)")
    add("--iterations", type=int, help="of the first frame")
    add("--crf", type=int, nargs="+", default=[18, 23, 28, 32], help="constant rate factors (default: 18 23 28 32)")
    add("--triples", type=int, default=20, help="triples of frames that are read (default: 20)")
    add("--seed", type=int, default=0, help="of all draws (default: 0)")
    add("--json", type=Path, help="report file")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its tables, write JSON; 0 on success."""
    photos = [round_8bit(photo.image) for photo in load_photos(args.images, args.size, match=args.match, limit=2)]
    with resources("onrw_core.samples").joinpath("drawing.png").open("rb") as file:
        drawing = images.load("drawing.png", file.read()).rgb
    clips = {
        "pan over a photo": _pan(photos[0], args.frames),
        "drawing over a still": _over(photos[-1], drawing, args.frames),
    }
    report = {}
    for name, (frames, step) in clips.items():
        report[name] = _measured(name, frames, step, args)
        print(_table(name, report[name], args), flush=True)
    if args.json:
        publish(args.json, report)
    return 0


def _pan(photo: Tensor, count: int) -> tuple[list[Tensor], int]:
    """Frames of a pan to the right, and its pixels a frame."""
    width = round(PANNED * photo.shape[-1])
    step = (photo.shape[-1] - width) // (count - 1)
    return [photo[..., step * i : step * i + width] for i in range(count)], step


def _over(still: Tensor, drawing: Tensor, count: int) -> tuple[list[Tensor], int]:
    """Frames of a drawing that moves over a photo, which stays."""
    height, width = size_of(still)
    side = round(DRAWING * min(height, width))
    small = F.interpolate(drawing[None], (side, side), mode="bicubic", antialias=True)[0]
    frames, top = [], (height - side) // 2
    for i in range(count):
        left = i * (width - side) // (count - 1)
        frame = still.clone()
        frame[:, top : top + side, left : left + side] = round_8bit(small)
        frames.append(frame)
    return frames, 0


def _measured(name: str, frames: list[Tensor], step: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one clip."""
    key = Key(bytes(range(32)))
    message = encode_text(TEXT, key)
    extractor = KeyedExtractor(key, len(message.bits))
    settings = PRESETS[args.preset].with_(iterations=args.iterations)
    marker = Marker(
        load_model("mini"), settings, extractor=extractor, key=key, mask=None, prompt="", size=args.size, seed=args.seed
    )

    def mark(frames: list[Tensor]) -> Iterator[Marked]:
        return marker.mark_clip(frames, Path(name), message)

    marked, cpu = [], []
    before = time.process_time()
    for each in mark(frames):
        marked.append(replace(each, watermarks=()))
        cpu.append(time.process_time() - before)
        before = time.process_time()
    alone = [next(mark([frame])) for frame in frames[: args.separate]]
    result = [each.image for each in marked]
    residuals = [a - b for a, b in zip(result, frames, strict=True)]
    separate = [each.image - frame for each, frame in zip(alone, frames, strict=False)]
    return {
        "size": "x".join(map(str, reversed(size_of(frames[0])))),
        "step": step,
        "quality": min(each.judgement.quality for each in marked),
        "psnr": fmean(each.psnr for each in marked),
        "flicker": {name: list(_flicker(rows, step)) for name, rows in (("clip", residuals), ("apart", separate))},
        "strength": LEVELS * fmean(float(each.square().mean().sqrt()) for each in residuals),
        "first_seconds": marked[0].seconds,
        "seconds": fmean(each.seconds for each in marked[1:]),
        "cpu_seconds": fmean(cpu[1:]),
        "read": {crf: _read(result, extractor, key, crf, args) for crf in args.crf},
        "averaging": {n: _estimated(result[:n], residuals[:n]) for n in AVERAGED if n <= len(result)},
    }


def _flicker(residuals: list[Tensor], step: int) -> tuple[float, float]:
    """The mean flicker at the same pixels, and along a motion of the scene by `step` pixels to the left."""
    still, along = [], []
    for before, after in zip(residuals[:-1], residuals[1:], strict=True):
        followed, new = translated(before[None], Shift(-step, 0))
        inside = (new[0] == 0).expand_as(after)
        still.append(float((after - before).square().mean().sqrt()))
        along.append(float((after - followed[0])[inside].square().mean().sqrt()))
    return LEVELS * fmean(still), LEVELS * fmean(along)


def _read(
    marked: list[Tensor], extractor: KeyedExtractor, key: Key, crf: int, args: argparse.Namespace
) -> dict[str, float]:
    """Share of triples of which the message is read after H.264, the median of log10 p, and kilobytes of the video."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_frames(path, marked, RATE, crf=crf)
        received, size = list(read_frames(path)), path.stat().st_size
    readings = [
        extractor.read(torch.stack([received[i] for i in chosen]), key)
        for chosen in _triples(len(received), args.triples, args.seed)
    ]
    p = sorted(reading.log10_p for reading in readings)
    return {
        "share": fmean(reading.message.value == TEXT for reading in readings),
        "log10_p": p[len(p) // 2],
        "kilobytes": size / 1000,
    }


def _triples(frames: int, count: int, seed: int) -> Iterator[list[int]]:
    draw = random.Random(seed)
    return (sorted(draw.sample(range(frames), 3)) for _ in range(count))


def _estimated(marked: list[Tensor], residuals: list[Tensor]) -> float:
    """Cosine of the mean residual and what is left of the mean frame without its smooth content."""
    mean = torch.stack(marked).mean(0, keepdim=True)
    estimate = mean - gaussian_blur(mean, SMOOTH)
    return float(F.cosine_similarity(estimate.flatten(), torch.stack(residuals).mean(0).flatten(), dim=0))


def _table(name: str, row: dict[str, Any], args: argparse.Namespace) -> str:
    still, along = row["flicker"]["clip"]
    apart, apart_along = row["flicker"]["apart"]
    lines = [
        f"{name}: {args.frames} frames of {row['size']}, {row['step']} pixels a frame; SSIMULACRA2 at least "
        f"{row['quality']:.1f}, {row['psnr']:.1f} dB, residual {row['strength']:.2f} levels",
        f"  flicker at the same pixels {still:.2f}, along the motion {along:.2f}; marked separately {apart:.2f}, "
        f"{apart_along:.2f}",
        f"  seconds: {row['first_seconds']:.1f} for the first frame, {row['seconds']:.2f} for each later one "
        f"(CPU {row['cpu_seconds']:.2f})",
    ]
    for crf, read in row["read"].items():
        lines.append(
            f"  CRF {crf}: {read['share']:.0%} of {args.triples} triples, median p = 1e{read['log10_p']:.0f}, "
            f"{read['kilobytes']:.0f} kB"
        )
    cosines = ", ".join(f"{cosine:.2f} of {n}" for n, cosine in row["averaging"].items())
    return "\n".join([*lines, f"  averaging: cosine of estimate and residual {cosines} frames"])
