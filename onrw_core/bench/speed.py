"""`onrw bench speed`: seconds to success of this library and of the published loop.

Success is the first moment at which the image, composed at the target PSNR, gives the required share of all bits
over a fixed set of random attacks of the training mix, none of which either loop has seen. Looking for it is not timed.
Both loops get the same model, photos, extractor, composition and target, and both times begin before the inversion.

The published loop has its own path, `--published-preset`: `reference` is that of the public code (only the last step is
optimised), `paper` that of the text (null-text inversion, several steps, guidance 4.5), `same` that of this library. It
runs with the best of three step sizes, chosen on the first photo. On each photo it is stopped after `--cap-ratio`
times the seconds of this library; then, and where another cap stops it, the ratio is a lower bound. A photo on which
this library has no success by the end of its preset counts as a ratio of 0. Times by part come from
separate iterations, because the stopwatch itself takes time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..commands.models import add_device, chosen_device
from ..extractors.base import Extractor
from ..extractors.loading import load_extractor
from ..models import Loaded, load_model
from ..payload.keys import Key
from ..stages.noise_optimisation import PRESETS, Settings
from .cache import generator_for, write
from .measure import tell
from .photos import Photo, load_photos
from .shapes import DTYPES, SHAPES, random_model
from .stopwatch import AGAIN, EXTRACTOR, PARTS, UNET, VAE
from .trial import LEVELS, Conditions, Job, Parts, parts_of, until_success

__all__ = ["add_arguments", "run"]

LEARNING_RATES = (0.003, 0.01, 0.03)  # the paper's, and one to each side
REQUIRED = 0.98  # share of the bits; the mix has draws that cost some bits of any mark at 42 dB
CAP_ITERATIONS = 600
CAP_SECONDS = 1800.0
CAP_RATIO = 10.0
SAME = "same"
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
    add("--checkpointing", action="store_true", help="recompute activations with every preset")
    add("--extractor", default="keyed", help="keyed, rivagan, or a decoder file")
    add("--bits", type=int, default=48)
    add("--target-psnr", type=float, default=42.0, help="dB")
    add(
        "--required",
        type=float,
        default=REQUIRED,
        help="share of the bits that is success (1: every bit, always)",
    )
    add("--published-preset", choices=("paper", "reference", SAME), default="reference", help="the published path")
    add("--iterations", type=int, help="a fixed number for both loops, without looking for success")
    add("--cap-iterations", type=int, default=CAP_ITERATIONS, help="of the published loop, on each photo")
    add("--cap-seconds", type=float, default=CAP_SECONDS, help="of the published loop, on each photo")
    add("--cap-ratio", type=float, default=CAP_RATIO, help="stop it on a photo after so many times our seconds there")
    add("--learning-rate", type=float, nargs="+", default=list(LEARNING_RATES), help="of the published loop")
    add("--breakdown-iterations", type=int, default=3, help="iterations whose parts are timed")
    add("--no-published", action="store_true", help="run only the loop of this library")
    add_device(parser)
    add("--dtype", choices=sorted(DTYPES), default="fp32", help="of models with random weights")
    add("--cpu-time", action="store_true", help="count CPU instead of wall time, where the machine has other work")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="report file")
    add("--chart", type=Path, help="image file to write")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON and chart; 0 on success."""
    args.device = chosen_device(args.device)
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    extractor = load_extractor(args.extractor, key, args.bits).to(args.device)
    if args.model in SHAPES:
        loaded = random_model(args.model, args.device, DTYPES[args.dtype], args.seed)
    elif args.model == "mini":
        from ..mini import load_mini

        mini = load_mini(args.device, dtype=DTYPES[args.dtype])
        loaded = Loaded(mini.model, mini.autoencoder, mini.encode, args.device)
    else:
        loaded = load_model(args.model, args.device)
    settings = PRESETS[args.preset].with_(
        target_psnr=args.target_psnr, steps=args.steps, checkpointing=args.checkpointing or None, on_image=0.0
    )  # every iteration through the model, as the published loop's
    conditions = Conditions(
        size=args.size,
        device=args.device,
        seed=args.seed,
        required=args.required,
        iterations=args.iterations,
        breakdown_iterations=args.breakdown_iterations,
        cpu_time=args.cpu_time,
    )
    jobs = [
        Job(photo, loaded, extractor, settings, _bits(extractor, photo, args.seed), conditions)
        for photo in load_photos(args.images, args.size, args.match, args.limit)
    ]
    report: dict[str, Any] = {
        "version": __version__,
        "model": loaded.model.name,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "clock": "CPU" if args.cpu_time else "wall",
        "dtype": args.dtype,
        "size": args.size,
        "preset": args.preset,
        "required": args.required,
        "target_psnr": args.target_psnr,
        "ours": _ours(jobs),
    }
    if not args.no_published:
        report["published_preset"] = args.published_preset
        report["cap_ratio"] = args.cap_ratio
        published = settings
        if args.published_preset != SAME:
            path = PRESETS[args.published_preset]
            published = settings.with_(
                start_sigma=path.start_sigma, steps=path.steps, guidance=path.guidance, method=path.method
            )
        caps = [min(args.cap_seconds, args.cap_ratio * photo["seconds"]) for photo in report["ours"]["photos"]]
        report["published"] = _published(jobs, report["ours"], published, args.learning_rate, args.cap_iterations, caps)
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


def _ours(jobs: list[Job]) -> dict[str, Any]:
    cap = jobs[0].conditions.iterations or jobs[0].settings.iterations
    next(jobs[0].ours(jobs[0].inverted(jobs[0].settings), 1))  # initialisation in the first pass of a process
    results = []
    for job in jobs:
        results.append(until_success(job, job.settings, None, cap, math.inf))
        _tell("ours", results[-1])
    return _summary(results, parts_of(jobs[0], jobs[0].settings, None))


def _published(
    jobs: list[Job],
    ours: dict[str, Any],
    settings: Settings,
    learning_rates: list[float],
    cap_iterations: int,
    cap_seconds: list[float],
) -> dict[str, Any]:
    """The published loop on the path of `settings`, with the best step size, for photos where this library succeeds."""
    fixed = jobs[0].conditions.iterations
    cap = fixed or cap_iterations
    work = [
        (job, math.inf if fixed else seconds)
        for job, photo, seconds in zip(jobs, ours["photos"], cap_seconds, strict=True)
        if fixed or photo["success"]
    ]
    if not work:
        raise ValueError("our loop had no success on any photo: nothing to compare; give a lower --required")
    best, first = None, None
    for rate in learning_rates:
        result = until_success(work[0][0], settings, rate, cap, work[0][1])
        _tell(f"published, step {rate:g}", result)
        if first is None or _rank(result) > _rank(first):
            best, first = rate, result
        if fixed:
            break
    results = [first]
    for job, limit in work[1:]:
        results.append(until_success(job, settings, best, cap, limit))
        _tell("published", results[-1])
    return _summary(results, parts_of(work[0][0], settings, best)) | {"learning_rate": best}


def _rank(result: dict[str, Any]) -> tuple[bool, float, float]:
    """Sort key of results, best first: success, share of the bits, seconds."""
    reached = 0.0 if result["success"] else result["best_share"]
    return result["success"], reached, -result["seconds"]


def _summary(results: list[dict[str, Any]], parts: Parts) -> dict[str, Any]:
    """Medians over photos; success where it holds for the median photo."""
    peaks = [r["peak_megabytes"] for r in results if r["peak_megabytes"] is not None]
    each = [r["seconds_per_iteration"] for r in results if r["seconds_per_iteration"] is not None]
    return {
        "success": sum(r["success"] for r in results) * 2 > len(results),
        "successes": sum(r["success"] for r in results),
        "iterations_to_success": median(r["iterations"] for r in results),
        "seconds_to_success": median(r["seconds"] for r in results),
        "seconds_per_iteration": median(each or [sum(parts.iteration.values())]),
        "peak_megabytes": max(peaks) if peaks else None,
        "finite": all(r["finite"] for r in results),
        "breakdown": parts.iteration,
        "breakdown_of_start": parts.start,
        "photos": results,
    }


def _ratios(report: dict[str, Any]) -> dict[str, Any]:
    """`overhead` up to success, and the ratios to the published loop where it ran."""
    ours = report["ours"]
    more = ours["iterations_to_success"] - 1
    spent = {part: ours["breakdown_of_start"][part] + more * ours["breakdown"][part] for part in PARTS}
    passes = sum(spent[part] for part in (UNET, VAE, EXTRACTOR, AGAIN))
    ratios: dict[str, Any] = {"overhead": 1 - passes / sum(spent.values())}
    if "published" in report:
        theirs = report["published"]
        pairs = list(zip(theirs["photos"], [p for p in ours["photos"] if _compared(p, report)], strict=True))
        failed = [0.0] * (len(ours["photos"]) - len(pairs))
        ratios["speedup_to_success"] = median([a["seconds"] / b["seconds"] for a, b in pairs] + failed)
        ratios["speedup_is_at_least"] = ours["success"] and not theirs["success"]
        ratios["speedup_is_valid"] = ours["success"]
        ratios["speedup_by_share"] = _by_share(pairs)
        ratios["speedup_per_iteration"] = theirs["seconds_per_iteration"] / ours["seconds_per_iteration"]
    return ratios


def _compared(photo: dict[str, Any], report: dict[str, Any]) -> bool:
    """Whether the published loop ran on a photo."""
    return photo["photo"] in {other["photo"] for other in report["published"]["photos"]}


def _by_share(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Median ratio of the seconds to each share of the bits that this library reaches, and how many are bounds."""
    table = {}
    for level in map("{:g}".format, LEVELS):
        found = [(a, b["seconds_to_share"][level]) for a, b in pairs if level in b["seconds_to_share"]]
        if found:
            table[level] = {
                "speedup": median(a["seconds_to_share"].get(level, a["seconds"]) / seconds for a, seconds in found),
                "photos": len(found),
                "at_least": sum(level not in a["seconds_to_share"] for a, _ in found),
            }
    return table


def _bits(extractor: Extractor, photo: Photo, seed: int) -> Tensor:
    return torch.randint(2, (extractor.num_bits,), generator=generator_for(seed, photo.name, "message"))


def _tell(loop: str, result: dict[str, Any]) -> None:
    outcome = "success" if result["success"] else "no success"
    tell(
        f"{loop}: {result['photo']}: {outcome} after {result['iterations']} iterations, {result['seconds']:.1f} s, "
        f"{100 * result['best_share']:.1f} % of the bits"
    )


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
    lines.append(f"overhead over UNet, VAE and extractor: {100 * report['overhead']:.1f} %")
    if "speedup_to_success" in report:
        bound = "at least " if report["speedup_is_at_least"] else ""
        value = f"{bound}{report['speedup_to_success']:.1f} x" if report["speedup_is_valid"] else "no success of ours"
        lines.append(f"speedup to success: {value}; an iteration: {report['speedup_per_iteration']:.1f} x")
        for level, row in report["speedup_by_share"].items():
            counts = f"{row['photos']} photos, {row['at_least']} of them lower bounds"
            lines.append(f"  to {100 * float(level):g} % of the bits: {row['speedup']:.1f} x ({counts})")
    return "\n".join(lines)


def _seconds(loop: dict[str, Any]) -> str:
    return f"{'' if loop['success'] else '> '}{loop['seconds_to_success']:.1f}"
