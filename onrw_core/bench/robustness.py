"""`onrw bench robustness`: mark photos, attack them, read them blindly, and count.

Every system marks the same photos with the same kind of message, a random id with its error correction and check; every
attack gets the same random draws. "TPR at FPR f" counts readings with presence at f and the right message at f (so many
equal bits that random bits have them with probability f: 36 and 41 of 48 bits at 1e-3 and 1e-6); systems without a
presence statistic need the message alone. Everything is cached in the output folder and resumes after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import attack, suite
from ..extractors.loading import load_extractor
from ..keys import Key
from ..message import SIZES, random_id, raw
from ..metrics import flattest_window_psnr, psnr, ssim
from ..mini import Mini, load_mini
from ..optimise import PRESETS, Settings
from .cache import Cache, generator_for, write
from .peers import peers
from .photos import Photo, load_photos, mosaic
from .regeneration import regenerations
from .report import PLAIN, progress, robustness_report, tables
from .spaces import SPACES
from .statistics import judge
from .systems import Onrw, System

__all__ = ["SUITES", "add_arguments", "run"]

SUITES = ("onrw12", "onrw12-random", "extended", "regeneration", "adversarial")
OUT = Path("bench-robustness")

logger = logging.getLogger(__name__)


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
    add("--suite", nargs="+", choices=SUITES, default=["onrw12"], help="attacks to try")
    add("--peers", action="store_true", help="the same for DwtDct, DwtDctSvd, RivaGAN and blind-watermark")
    add("--no-onrw", action="store_true", help="peers only")
    add("--preset", choices=sorted(PRESETS), default="fast")
    add("--bits", type=int, nargs="+", default=[48], help="raw bits of the keyed extractor")
    add("--target-psnr", type=float, nargs="+", default=[42.0], help="dB")
    add(
        "--space",
        nargs="+",
        default=["noise"],
        metavar="SPACE[=STEP]",
        help=f"{', '.join(SPACES)}; with step size",
    )
    add("--extractor", nargs="+", default=["keyed"], help="keyed, rivagan, or a decoder file")
    add("--allow-torchscript", action="store_true", help="run the code in a TorchScript decoder")
    for name, kind in (("start-sigma", float), ("learning-rate", float), ("steps", int), ("iterations", int)):
        add(f"--{name}", type=kind, help="instead of the preset's")
    add("--attacks", type=int, help="attacks an iteration, instead of the preset's")
    add(
        "--mosaic", action="store_true", help="besides, one large picture made of the photos, marked natively"
    )
    add("--false-positives", type=int, default=0, metavar="N", help="about N readings with wrong keys")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=OUT, help="folder of marks, readings, report and chart")
    add("--json", type=Path, help="report file; OUT/report.json by default")
    add("--reread", action="store_true", help="forget cached readings, after a change of the reader")
    add("--no-chart", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its tables, write JSON and chart; 0 on success."""
    torch.manual_seed(args.seed)  # nothing draws from it; a peer might
    start = time.perf_counter()
    photos = load_photos(args.images, args.size, args.match, args.limit)
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    needs_mini = "regeneration" in args.suite or not (
        args.no_onrw or all(space.startswith("pixel") for space in args.space)
    )
    mini = load_mini(args.device) if needs_mini else None
    systems = ([] if args.no_onrw else _onrw(args, key, mini)) + (peers() if args.peers else [])
    if not systems:
        raise ValueError("nothing to benchmark: --no-onrw needs --peers")
    caches = {s.name: Cache(args.out, s, args.seed, args.reread) for s in systems}
    marks: dict[str, list[dict]] = {s.name: [] for s in systems}
    readings: dict[str, list[dict]] = {s.name: [] for s in systems}
    extra = [mosaic(photos)] if args.mosaic else []
    attacks = _attacks([s for s in args.suite if s != "adversarial"], args.seed, mini, args.device)
    for number, photo in enumerate(photos + extra, 1):
        for s in systems:
            if isinstance(s, Onrw) and photo in extra:
                s = replace(s, size=None)
            note, taken = _measure(s, caches[s.name], photo, attacks, key, args.seed)
            marks[s.name].append(note)
            readings[s.name] += taken
            logger.info("%s", progress(f"{number}/{len(photos) + len(extra)}", s, photo, note, taken))
    report = robustness_report(systems, marks, readings, [p.name for p in extra])
    report |= {"size": args.size, "seed": args.seed}
    if "adversarial" in args.suite:
        from .adversarial import adversarial  # peers' packages and second keys only where asked for

        ours = [s for s in systems if isinstance(s, Onrw) and s.extractor.name == "keyed"]
        report["adversarial"] = {s.name: adversarial(s, caches[s.name], photos, key, args.seed) for s in ours}
    if args.false_positives:
        from .false_positives import false_positives

        report["false_positives"] = false_positives(photos, key, args.false_positives, args.seed, logger.info)
    report["seconds"] = round(time.perf_counter() - start, 1)
    print(tables(report))
    path = args.json or args.out / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(report, indent=1))
    print(f"report: {path}")
    if not args.no_chart:
        from .charts import robustness_chart

        robustness_chart(report, args.out / "robustness.png")
        print(f"chart: {args.out / 'robustness.png'}")
    return 0


def _onrw(args: argparse.Namespace, key: Key, mini: Mini | None) -> list[System]:
    """One system for each combination of extractor, bits, space and target PSNR."""
    base = PRESETS[args.preset].with_(
        start_sigma=args.start_sigma,
        learning_rate=args.learning_rate,
        steps=args.steps,
        iterations=args.iterations,
        attacks=args.attacks,
    )
    systems = []
    for name in args.extractor:
        for bits in args.bits if name == "keyed" else [0]:
            extractor = load_extractor(name, key, bits, args.allow_torchscript)
            for space in args.space:
                space, _, rate = space.partition("=")
                if space not in SPACES:
                    raise ValueError(f"--space {space}: choose from {', '.join(SPACES)}, e.g. pixel=0.01")
                for target in args.target_psnr:
                    settings = base.with_(target_psnr=target, learning_rate=_number(rate))
                    label = _label(args, extractor.name, extractor.num_bits, space, target)
                    systems.append(
                        Onrw(label, extractor, _for_space(settings, space), mini, space, args.size,
                             key.fingerprint, args.device)
                    )  # fmt: skip
    return systems


def _for_space(settings: Settings, space: str) -> Settings:
    """Outside of the noise there is no model whose attention, prompt or guidance could matter."""
    if space == "noise":
        return settings
    return settings.with_(
        steps=1,
        guidance=1.0,
        method="ddim",
        attention_weight=0.0,
        mask="none",
        inject=False,
        start_sigma=0.041,
    )


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f"--space: {text!r} is not a step size; write e.g. pixel=0.01") from None


def _label(args: argparse.Namespace, extractor: str, bits: int, space: str, target: float) -> str:
    parts = ["ONRW"]
    parts += [extractor] if len(args.extractor) > 1 or extractor != "keyed" else []
    parts += [f"{bits} bits"] if len(args.bits) > 1 else []
    parts += [space] if len(args.space) > 1 or space != "noise" else []
    return " ".join([*parts, f"{target:g} dB"])


Attacks = Callable[[str], Iterator[tuple[str, str, Any]]]


def _attacks(suites: list[str], seed: int, mini: Mini | None, device: str) -> Attacks:
    """A function: photo name -> (suite, label, attack); random strengths differ from photo to photo."""
    models = regenerations(mini, device) if "regeneration" in suites else []

    def of(photo: str) -> Iterator[tuple[str, str, Any]]:
        yield PLAIN, PLAIN, attack("identity")
        for name in suites:
            if name == "regeneration":
                yield from ((name, str(a), a) for a in models)
            elif name == "onrw12-random":
                drawn = suite(name, generator_for(seed, name, photo))
                yield from ((name, f"random {a.name}", a) for a in drawn)
            else:
                yield from ((name, str(a), a) for a in suite(name))

    return of


def _measure(
    system: System, cache: Cache, photo: Photo, attacks: Attacks, key: Key, seed: int
) -> tuple[dict, list[dict]]:
    """Mark one photo and read it after every attack, as far as the cache does not have it."""
    image, note = cache.mark(photo) or _mark(system, cache, photo, key, seed)
    expected = torch.tensor([int(b) for b in note["bits"]])
    records = []
    for suite_name, label, action in attacks(photo.name):
        text = f"{suite_name}: {action}"
        record = cache.reading(note["mark"], text)
        if record is None:
            attacked = action(image[None], generator_for(seed, photo.name, text))
            outcome = system.read(attacked.images[0], tuple(photo.image.shape[-2:]))
            record = {
                "photo": photo.name,
                "mark": note["mark"],
                "attack": text,
                "suite": suite_name,
                "label": label,
            }
            record |= judge(outcome, expected, key, note["id"])
            cache.keep_reading(record)
        records.append(record)
    return note, records


def _mark(system: System, cache: Cache, photo: Photo, key: Key, seed: int) -> tuple[Tensor, dict]:
    generator = generator_for(seed, photo.name, "message")
    if system.num_bits in SIZES:
        message = random_id(key, generator, system.num_bits)
    else:
        message = raw(torch.randint(2, (system.num_bits,), generator=generator))
    start = time.perf_counter()
    image, facts = system.mark(photo, message.bits, generator_for(seed, photo.name, "marking"))
    seconds = time.perf_counter() - start
    marked, original = image[None], photo.image[None]
    note = {
        "photo": photo.name,
        "photo_digest": photo.digest,
        "mark": Photo("", image).digest[:16],
        "bits": "".join(map(str, message.bits.tolist())),
        "id": message.value if message.kind == "id" else "",
        "psnr": psnr(marked, original),
        "ssim": float(ssim(marked, original)),
        "psnr_flat": flattest_window_psnr(marked, original),
        "seconds": round(seconds, 3),
        **facts,
    }
    cache.keep_mark(photo, image, note)
    return image, note
