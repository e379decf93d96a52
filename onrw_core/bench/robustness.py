"""`onrw bench robustness`: mark photos, attack them, read them blindly, and count.

Every system marks the same photos with the same kind of message, a random id with its error correction and check; every
attack gets the same random draws. "TPR at FPR f" counts readings with presence at f and the right message at f (so many
equal bits that random bits have them with probability f: 36 and 41 of 48 bits at 1e-3 and 1e-6); systems without a
presence statistic need the message alone. Marks have a quality, or for comparisons a target PSNR, which may be the name
of a peer: then each photo is marked at the PSNR that the own mark of the peer on it has. Everything is cached in the
output folder and resumes after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time
from pathlib import Path

import torch

from ..attacks import MIXES
from ..commands.common import number
from ..commands.models import add_device, chosen_device
from ..commands.output import say
from ..extractors.loading import load_extractor
from ..mini import Mini, load_mini
from ..payload.keys import Key
from ..stages.constrained_denoising import SPACES
from ..stages.noise_optimisation import PRESETS
from ..stages.quality import DEFAULT_QUALITY, HIGHEST, LOWEST
from .cache import Cache, publish
from .marking import marked
from .measure import attacks_of, labels_read, measure
from .peers import PEERS, peers
from .photos import Photo, load_photos, mosaic
from .report import robustness_report, tables
from .statistics import public_summary
from .systems import AtQuality, Onrw, System

__all__ = ["SUITES", "add_arguments", "run"]

SUITES = ("onrw12", "onrw12-random", "extended", "regeneration")
OUT = Path("bench-robustness")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench robustness`."""
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        required=True,
        help="folder of photos, captions.tsv in it if there are captions",
    )
    add("--match", default="*", help="only files of this pattern, e.g. 'kodim*'")
    add("--limit", type=int, help="at most so many photos")
    add("--size", type=int, default=512, help="pixels of the shorter side; photos are brought to it")
    working = "pixels of the shorter side at which a mark is made; the photo's own (default) or e.g. 512 for large ones"
    add("--working-size", type=int, help=working)
    add("--suite", nargs="*", choices=SUITES, default=["onrw12"], help="attacks to try")
    more = "attacks in addition to the suites', e.g. jpeg=30 crop=.5+rotation=10"
    add("--attack", nargs="+", default=[], metavar="NAME=STRENGTH", help=more)
    beside = (
        "the same for DwtDct, DwtDctSvd, RivaGAN and blind-watermark; with --quality, their residuals are scaled to it"
    )
    add("--peers", action="store_true", help=beside)
    add("--no-onrw", action="store_true", help="peers only")
    add("--preset", choices=sorted(PRESETS), default="fast")
    add("--bits", type=int, nargs="+", default=[48], help="raw bits of the keyed extractor")
    visible = parser.add_mutually_exclusive_group()
    quality = f"SSIMULACRA2 of the marks (default: {DEFAULT_QUALITY:g}, and 42 dB for a third-party decoder)"
    visible.add_argument("--quality", nargs="+", type=number(float, LOWEST, HIGHEST), metavar="Q", help=quality)
    psnr = f"instead of a quality: dB, or one of {', '.join(PEERS)}"
    visible.add_argument("--target-psnr", nargs="+", metavar="DB|PEER", help=psnr)
    add(
        "--space",
        nargs="+",
        default=["noise"],
        metavar="SPACE[=STEP]",
        help=f"{', '.join(SPACES)}; with step size",
    )
    add("--extractor", nargs="+", default=["keyed"], help="keyed, rivagan, or a decoder file")
    add("--allow-torchscript", action="store_true", help="run the code in a TorchScript decoder")
    for name, kind in (("learning-rate", float), ("steps", int), ("iterations", int)):
        add(f"--{name}", type=kind, help="instead of the preset's")
    add("--start-sigma", type=float, nargs="+", help="noise levels instead of the preset's")
    add("--attacks", type=int, help="attacks an iteration, instead of the preset's")
    add("--mix", choices=tuple(MIXES), help="attack mix of the optimisation, instead of the preset's")
    add("--purify", type=float, nargs="+", metavar="SIGMA", help="strengths of the purification in regeneration")
    add("--public", action="store_true", help="read the public layer and its label as well")
    draws = "read the public layer alone after so many further draws of onrw12-random, for labels that are wrong"
    add("--label-draws", type=number(int, 0, 10_000), default=0, metavar="N", help=draws)
    add("--mosaic", action="store_true", help="also mark one large image, a mosaic of the photos, at its own size")
    add("--seed", type=int, default=0)
    add_device(parser)
    add("--out", type=Path, default=OUT, help="folder of marks, readings, report and chart")
    add("--json", type=Path, help="report file; OUT/report.json by default")
    add("--reread", action="store_true", help="forget cached readings, after a change of the reader")
    add("--no-chart", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its tables, write JSON and chart; 0 on success."""
    args.device = chosen_device(args.device)
    torch.manual_seed(args.seed)  # nothing draws from it; a peer might
    start = time.perf_counter()
    photos = load_photos(args.images, args.size, args.match, args.limit)
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    mini = None if args.no_onrw and "regeneration" not in args.suite else load_mini(args.device)
    others = peers() if args.peers else []
    if args.quality:
        others = [AtQuality(peer, quality) for quality in args.quality for peer in others]
    caches = {s.name: Cache(args.out, s, args.seed, args.reread) for s in others}
    systems = ([] if args.no_onrw else _onrw(args, key, mini, others, caches)) + others
    if not systems:
        raise ValueError("nothing to benchmark: --no-onrw needs --peers")
    caches |= {s.name: Cache(args.out, s, args.seed, args.reread) for s in systems if s.name not in caches}
    extra = [mosaic(photos)] if args.mosaic else []
    attacks = attacks_of(args.suite, args.seed, mini, args.device, args.purify, args.attack)
    marks, readings = measure(systems, caches, photos, attacks, key, args.seed, extra, args.public)
    report = robustness_report(systems, marks, readings, [p.name for p in extra])
    for row, s in zip(report["systems"], systems, strict=True):
        if args.label_draws and isinstance(s, Onrw):
            read = labels_read(s, caches[s.name], photos, key, args.seed, args.label_draws)
            row["public"][f"{args.label_draws} further draws"] = public_summary(read, s.settings_.label)
    report |= {"size": args.size, "seed": args.seed}
    report["seconds"] = round(time.perf_counter() - start, 1)
    print(tables(report))
    publish(args.json or args.out / "report.json", report)
    if not args.no_chart:
        from .charts import robustness_chart

        robustness_chart(report, args.out / "robustness.png")
        say(f"chart: {args.out / 'robustness.png'}")
    return 0


def _onrw(
    args: argparse.Namespace, key: Key, mini: Mini | None, others: list[System], caches: dict[str, Cache]
) -> list[System]:
    """One system for each combination of extractor, bits, space, and quality or target PSNR."""
    base = PRESETS[args.preset].with_(
        learning_rate=args.learning_rate,
        steps=args.steps,
        iterations=args.iterations,
    )

    def psnr_of(peer: System, photo: Photo) -> float:
        return marked(peer, caches[peer.name], photo, key, args.seed)[1]["psnr"]

    systems = []
    for name, bits, (space, rate), sigma, target in itertools.product(
        args.extractor,
        args.bits,
        map(_space, args.space),
        args.start_sigma or [None],
        args.target_psnr or args.quality or [None],
    ):
        extractor = load_extractor(name, key, bits, args.allow_torchscript).to(args.device)
        if len(extractor.sizes) == 1 and bits != args.bits[0]:
            continue  # a third-party decoder has the bits that it has
        if args.quality and "target_psnr" in extractor.marking:
            raise ValueError(f"--quality: marks for {extractor.name} take --target-psnr; their quality is reported")
        settings = base.with_(**extractor.marking).with_(mix=args.mix, attacks=args.attacks)
        settings = settings.with_(space=space, start_sigma=sigma, learning_rate=rate)
        decibels, peer = _target(target, others) if args.target_psnr else (None, None)
        settings = settings.with_(target_psnr=decibels, quality=None if args.target_psnr else target)
        visible = f"{settings.target_psnr:g} dB" if settings.quality is None else f"quality {settings.quality:g}"
        parts = ["ONRW"]
        parts += [extractor.name] if len(args.extractor) > 1 or name != "keyed" else []
        parts += [f"{bits} bits"] if len(args.bits) > 1 and len(extractor.sizes) > 1 else []
        parts += [space] if len(args.space) > 1 or space != "noise" else []
        parts += [f"sigma {sigma:g}"] if len(args.start_sigma or []) > 1 else []
        label = " ".join([*parts, visible if peer is None else f"as {peer.name}"])
        system = Onrw(label, extractor, settings, mini, args.working_size or args.size, key.fingerprint, args.device)
        if peer is not None:
            system.like, system.psnr_of = peer, psnr_of
        systems.append(system)
    return systems


def _target(text: str, others: list[System]) -> tuple[float | None, System | None]:
    """ "42" -> (42.0, None); a peer's name -> (None, the peer)."""
    for peer in others:
        if peer.name.lower() == text.lower():
            return None, peer
    try:
        return float(text), None
    except ValueError:
        raise ValueError(f"--target-psnr {text}: give decibels, or with --peers one of {', '.join(PEERS)}") from None


def _space(text: str) -> tuple[str, float | None]:
    """ "pixel=0.01" -> ("pixel", 0.01)."""
    space, _, rate = text.partition("=")
    if space not in SPACES:
        raise ValueError(f"--space {text}: choose from {', '.join(SPACES)}, with a step size if wanted: pixel=0.01")
    try:
        return space, float(rate) if rate else None
    except ValueError:
        raise ValueError(f"--space {text}: {rate!r} is not a step size; write e.g. pixel=0.01") from None
