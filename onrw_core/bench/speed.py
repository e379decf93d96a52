"""`onrw bench speed`: seconds to success, ours beside the published loop.

Success is the first moment at which the picture, composed at the target PSNR, gives the required share of all bits
over a fixed set of random attacks of the training mix, none of which either loop has seen; the time to other shares is
noted as well. Looking for it is not timed. Both loops get the same model, photos,
inversion, extractor, composition and target, and both times begin before the inversion. The published loop runs with
the best of three step sizes, chosen on the first photo; where a cap stops it, the ratio is a lower bound. Times by
part come from separate iterations, because the stopwatch costs time itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..attacks import training_mix
from ..commands.models import Loaded, load_model
from ..constrained import Constraint, original_branch
from ..extractors.base import Extractor
from ..extractors.loading import load_extractor
from ..inversion import invert
from ..inversion import run as last_of
from ..keys import Key
from ..metrics import psnr
from ..model import Conditioning
from ..optimise import PRESETS, Settings, optimise
from ..pipeline import working_image
from ..trajectory import Inversion
from .cache import generator_for, write
from .memory import peak_memory
from .photos import Photo, load_photos
from .published import published_loop
from .shapes import SHAPES, random_model
from .stopwatch import (
    AGAIN,
    EXTRACTOR,
    PARTS,
    UNET,
    VAE,
    Stopwatch,
    TimedAutoencoder,
    TimedExtractor,
    TimedModel,
)

__all__ = ["add_arguments", "run"]

LEARNING_RATES = (0.003, 0.01, 0.03)  # the paper's, and one to each side
CHECKS = 16  # random attacks that the picture is read after
CHECK_EVERY, CHECK_LATE, LATE = (
    2,
    5,
    60,
)  # iterations: looked at every second one, from the 60th on every fifth
REQUIRED = 0.99  # share of the bits; the mix has draws that cost some bits of any mark at 42 dB
LEVELS = (0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
CAP_ITERATIONS = 600
CAP_SECONDS = 1800.0
PSNR_TOLERANCE = 0.1  # dB
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAMPLE = Path(__file__).parent.parent / "samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench speed`."""
    add = parser.add_argument
    add("--images", type=Path, default=SAMPLE, help="folder of photos; the bundled one by default")
    add("--match", default="*", help="only files of this pattern")
    add("--limit", type=int, default=6, help="at most so many photos")
    add("--size", type=int, default=512, help="pixels of the shorter side")
    add(
        "--model",
        default="mini",
        metavar=f"mini|PATH|{'|'.join(SHAPES)}",
        help="random weights for time and memory",
    )
    add("--preset", choices=sorted(PRESETS), default="fast")
    add("--steps", type=int, help="denoising steps, instead of the preset's")
    add("--checkpointing", action="store_true", help="recompute activations, whatever the preset says")
    add("--extractor", default="keyed", help="keyed, rivagan, or a decoder file")
    add("--bits", type=int, default=48)
    add("--target-psnr", type=float, default=42.0, help="dB")
    add(
        "--required",
        type=float,
        default=REQUIRED,
        help="share of the bits that is success (1: every bit, always)",
    )
    add("--iterations", type=int, help="a fixed number for both loops, without looking for success")
    add("--cap-iterations", type=int, default=CAP_ITERATIONS)
    add("--cap-seconds", type=float, default=CAP_SECONDS, help="of each loop and photo")
    add("--learning-rate", type=float, nargs="+", default=list(LEARNING_RATES), help="of the published loop")
    add("--breakdown-iterations", type=int, default=3, help="iterations whose parts are timed")
    add("--no-published", action="store_true", help="ours only")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=sorted(DTYPES), default="fp32", help="of models with random weights")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="report file")
    add("--chart", type=Path, help="picture file")


@dataclass
class Job:
    """One photo on the bench.

    Attributes:
        photo: What is marked.
        loaded: The model.
        extractor: The reader.
        settings: Of our loop; inversion and target hold for both.
        bits: The message.
        args: The command line.
    """

    photo: Photo
    loaded: Loaded
    extractor: Extractor
    settings: Settings
    bits: Tensor
    args: argparse.Namespace

    def __post_init__(self) -> None:
        working, padded = working_image(self.photo.image, self.args.size)
        self.image, self.padded = working.to(self.args.device), padded.to(self.args.device)

    def inverted(self) -> Inversion:
        """The photo's inversion, made anew."""
        model, autoencoder, encode = self.loaded.model, self.loaded.autoencoder, self.loaded.encode
        with torch.no_grad():
            latent = autoencoder.encode(self.padded)
        positive: Conditioning = encode(self.photo.prompt)
        s = self.settings
        states = invert(model, latent, positive, encode(""), steps=s.steps, start_sigma=s.start_sigma,
                        guidance=s.guidance, method=s.method)  # fmt: skip
        return last_of(states)

    def ours(self, inversion: Inversion, iterations: int) -> Iterator[Tensor]:
        """Our loop, without an early stop of its own."""
        settings = self.settings.with_(iterations=iterations, patience=iterations)
        wanted = Constraint(
            settings.attention_weight > 0 and not settings.inject, settings.inject, settings.mask
        )
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        original = original_branch(model, autoencoder, inversion, wanted)
        states = optimise(model, autoencoder, inversion, self.image, self.extractor, self.bits, settings,
                          generator=self._generator("ours"), original=original)  # fmt: skip
        for state in states:
            yield state.image

    def published(self, inversion: Inversion, learning_rate: float) -> Iterator[Tensor]:
        """The published loop."""
        return published_loop(
            self.loaded.model,
            self.loaded.autoencoder,
            inversion,
            self.image,
            self.extractor,
            self.bits,
            learning_rate=learning_rate,
            target_psnr=self.settings.target_psnr,
            luma_only=self.settings.luma_only,
            generator=self._generator("published"),
        )

    def share(self, marked: Tensor) -> float:
        """Share of the bits that are read after the fixed attacks; 0 if the picture misses the target PSNR."""
        if psnr(marked, self.image) < self.settings.target_psnr - PSNR_TOLERANCE:
            return 0.0
        expected, right = self.bits.bool().to(marked.device), 0
        with torch.no_grad():
            for i, attack in enumerate(training_mix().draw(self._generator("checks"), CHECKS)):
                attacked = attack(marked, generator_for(self.args.seed, "check", i))
                read = self.extractor.logits(attacked.images, attacked.geometry)[0] > 0
                right += int((read == expected).sum())
        return right / (CHECKS * len(expected))

    def on(self, watch: Stopwatch) -> Job:
        """The same job with its parts on a stopwatch."""
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        timed = Loaded(TimedModel(model, watch), TimedAutoencoder(autoencoder, watch), self.loaded.encode)
        return Job(
            self.photo, timed, TimedExtractor(self.extractor, watch), self.settings, self.bits, self.args
        )

    def _generator(self, purpose: str) -> torch.Generator:
        return generator_for(self.args.seed, self.photo.name, purpose)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON and chart; 0 on success."""
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    extractor = load_extractor(args.extractor, key, args.bits)
    if args.model in SHAPES:
        loaded = random_model(args.model, args.device, DTYPES[args.dtype], args.seed)
    elif args.model == "mini":
        from ..mini import load_mini

        mini = load_mini(args.device, dtype=DTYPES[args.dtype])
        loaded = Loaded(mini.model, mini.autoencoder, mini.encode)
    else:
        loaded = load_model(args.model)
    settings = PRESETS[args.preset].with_(
        target_psnr=args.target_psnr, steps=args.steps, checkpointing=args.checkpointing or None
    )
    jobs = [
        Job(photo, loaded, extractor, settings, _bits(extractor, photo, args.seed), args)
        for photo in load_photos(args.images, args.size, args.match, args.limit)
    ]
    report: dict[str, Any] = {
        "version": __version__,
        "model": loaded.model.name,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "size": args.size,
        "preset": args.preset,
        "required": args.required,
        "target_psnr": args.target_psnr,
        "ours": _ours(jobs, args),
    }
    if not args.no_published:
        report["published"] = _published(jobs, args)
    report |= _ratios(report)
    print(_table(report))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write(args.json, json.dumps(report, indent=1))
    if args.chart:
        if args.no_published:
            raise ValueError("--chart compares both loops: leave out --no-published")
        from .charts import speed_chart

        speed_chart(report, args.chart)
    return 0


def _ours(jobs: list[Job], args: argparse.Namespace) -> dict[str, Any]:
    results = []
    for job in jobs:
        results.append(_until_success(job, None, args))
        _tell("ours", results[-1])
    return _summary(results) | {"breakdown": _breakdown(jobs[0], None, args)}


def _published(jobs: list[Job], args: argparse.Namespace) -> dict[str, Any]:
    best, first = None, None
    for rate in args.learning_rate:
        result = _until_success(jobs[0], rate, args)
        _tell(f"published, step {rate:g}", result)
        if first is None or _rank(result) > _rank(first):
            best, first = rate, result
        if args.iterations:
            break
    results = [first]
    for job in jobs[1:]:
        results.append(_until_success(job, best, args))
        _tell("published", results[-1])
    breakdown = _breakdown(jobs[0], best, args)
    return _summary(results) | {"learning_rate": best, "breakdown": breakdown}


def _rank(result: dict[str, Any]) -> tuple[bool, float, float]:
    """Success first, then what was reached, then how fast."""
    reached = 0.0 if result["success"] else result["best_share"]
    return result["success"], reached, -result["seconds"]


def _until_success(job: Job, learning_rate: float | None, args: argparse.Namespace) -> dict[str, Any]:
    """Run a loop (ours without a learning rate) until success, a cap, or the fixed number of iterations."""
    cap = args.iterations or args.cap_iterations
    seconds, iterations, success, finite, best = 0.0, 0, False, True, 0.0
    levels: dict[str, float] = {}
    planned = min(cap, args.iterations or job.settings.iterations)
    with peak_memory(args.device) as peak:
        while not success and iterations < cap and seconds < args.cap_seconds:
            clock = _Clock(args.device)
            inversion = job.inverted()
            if learning_rate is None:
                # Our step size follows a plan, so a photo that needs longer starts again with a longer one.
                pictures = job.ours(inversion, min(planned, cap - iterations))
                planned *= 2
            else:
                pictures = job.published(inversion, learning_rate)
            setup = clock.seconds()
            for marked in pictures:
                iterations += 1
                so_far = seconds + clock.seconds()
                finite = finite and bool(torch.isfinite(marked).all())
                if (
                    not args.iterations
                    and iterations % (CHECK_EVERY if iterations < LATE else CHECK_LATE) == 0
                ):
                    with clock.paused():
                        share = job.share(marked)
                    best, success = max(best, share), share >= args.required
                    for level in LEVELS:
                        if share >= level:
                            levels.setdefault(f"{level:g}", so_far)
                if success or iterations >= cap or so_far >= args.cap_seconds:
                    break
            seconds = so_far
            pictures.close()
    return {
        "photo": job.photo.name,
        "success": success,
        "iterations": iterations,
        "best_share": best,
        "seconds": seconds,
        "seconds_to_share": levels,
        "setup_seconds": setup,
        "seconds_per_iteration": (seconds - setup) / iterations,
        "peak_megabytes": peak.megabytes,
        "finite": finite,
    }


class _Clock:
    """Wall time since it was made, without pauses; on CUDA the work is waited for."""

    def __init__(self, device: str) -> None:
        self._cuda, self._out = device.startswith("cuda"), 0.0
        self._start = self._now()

    def seconds(self) -> float:
        return self._now() - self._start - self._out

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._pause = self._now()

    def __exit__(self, *_: object) -> None:
        self._out += self._now() - self._pause

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _breakdown(job: Job, learning_rate: float | None, args: argparse.Namespace) -> dict[str, float]:
    """Seconds an iteration by part."""
    count = args.breakdown_iterations
    inversion = job.inverted()
    watch = Stopwatch(args.device)
    timed = job.on(watch)
    # One iteration more, which is left out: it warms up, and has our loop's setup in it.
    pictures = (
        timed.ours(inversion, count + 1)
        if learning_rate is None
        else timed.published(inversion, learning_rate)
    )
    with watch.watching():
        next(pictures)
        watch.start()
        for _ in range(count):
            next(pictures)
        watch.change(PARTS[-1])
    seconds = dict(watch.seconds)
    pictures.close()
    return {part: seconds.get(part, 0.0) / count for part in PARTS}


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over photos; success where it holds for the median photo."""
    peaks = [r["peak_megabytes"] for r in results if r["peak_megabytes"] is not None]
    return {
        "success": sum(r["success"] for r in results) * 2 > len(results),
        "successes": sum(r["success"] for r in results),
        "iterations_to_success": median(r["iterations"] for r in results),
        "seconds_to_success": median(r["seconds"] for r in results),
        "seconds_per_iteration": median(r["seconds_per_iteration"] for r in results),
        "peak_megabytes": max(peaks) if peaks else None,
        "finite": all(r["finite"] for r in results),
        "photos": results,
    }


def _ratios(report: dict[str, Any]) -> dict[str, Any]:
    """`overhead`, and the ratios to the published loop where it ran."""
    breakdown = report["ours"]["breakdown"]
    passes = sum(breakdown[part] for part in (UNET, VAE, EXTRACTOR, AGAIN))
    ratios: dict[str, Any] = {"overhead": 1 - passes / sum(breakdown.values())}
    if "published" in report:
        ours, theirs = report["ours"], report["published"]
        ratios["speedup_to_success"] = theirs["seconds_to_success"] / ours["seconds_to_success"]
        ratios["speedup_is_at_least"] = ours["success"] and not theirs["success"]
        ratios["speedup_is_valid"] = ours["success"]
        ratios["speedup_per_iteration"] = theirs["seconds_per_iteration"] / ours["seconds_per_iteration"]
    return ratios


def _bits(extractor: Extractor, photo: Photo, seed: int) -> Tensor:
    return torch.randint(2, (extractor.num_bits,), generator=generator_for(seed, photo.name, "message"))


def _tell(loop: str, result: dict[str, Any]) -> None:
    outcome = "success" if result["success"] else "no success"
    text = (
        f"{loop}: {result['photo']}: {outcome} after {result['iterations']} iterations, {result['seconds']:.1f} s, "
        f"{100 * result['best_share']:.1f} % of the bits"
    )
    print(text, file=sys.stderr, flush=True)


def _table(report: dict[str, Any]) -> str:
    loops = [name for name in ("published", "ours") if name in report]
    lines = [
        f"{report['model']} on {report['device']} ({report['threads']} threads), {report['size']} px, preset "
        f"{report['preset']}, {report['target_psnr']:g} dB, {len(report['ours']['photos'])} photos",
        f"{'':<26}" + "".join(f"{name:>14}" for name in loops),
    ]

    def row(label: str, values: list[str]) -> None:
        lines.append(f"{label:<26}" + "".join(f"{v:>14}" for v in values))

    row("photos with success", [str(report[n]["successes"]) for n in loops])
    row("seconds to success", [_seconds(report[n]) for n in loops])
    row("iterations to success", [f"{report[n]['iterations_to_success']:g}" for n in loops])
    row("seconds an iteration", [f"{report[n]['seconds_per_iteration']:.3f}" for n in loops])
    row("peak memory, MB", [f"{report[n]['peak_megabytes'] or math.nan:.0f}" for n in loops])
    for part in PARTS:
        row(f"  {part}", [f"{report[n]['breakdown'][part]:.3f}" for n in loops])
    lines.append(f"overhead beside UNet, VAE and extractor: {100 * report['overhead']:.1f} %")
    if "speedup_to_success" in report:
        bound = "at least " if report["speedup_is_at_least"] else ""
        value = (
            f"{bound}{report['speedup_to_success']:.1f} x"
            if report["speedup_is_valid"]
            else "no success of ours"
        )
        lines.append(f"speedup to success: {value}; an iteration: {report['speedup_per_iteration']:.1f} x")
    return "\n".join(lines)


def _seconds(loop: dict[str, Any]) -> str:
    return f"{'' if loop['success'] else '> '}{loop['seconds_to_success']:.1f}"
