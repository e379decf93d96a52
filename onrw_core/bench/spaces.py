"""`onrw bench spaces`: comparison of changes of the noise, of the latent and of the pixels.

The same extractor, losses and composition at the same PSNR, with one of these as the optimised variable:

    pixel      the image itself
    latent     the clean latent, through the decoder
    noise      the inverted noise at the preset's small sigma, through denoising and decoder
    noise-far  the inverted noise several steps back

each with and without regeneration in the attack mix, at equal iterations and at equal time (the time that "noise"
takes), each with the best of three step sizes. Step sizes are chosen, and seconds are measured, on other photos than
those that are reported. Early stopping is off. Intervals are bootstrapped by photo; differences to "pixel" are taken
photo by photo. Everything is cached in the output folder and resumes after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..attacks import MIXES, training_mix
from ..attacks.regeneration import regenerations
from ..commands.output import say
from ..extractors.keyed.extractor import KeyedExtractor
from ..mini import Mini, load_mini
from ..payload.keys import Key
from ..payload.message import random_id
from ..pipeline import embed
from ..stages.noise_optimisation import PRESETS, Settings
from .cache import Cache, generator_for, publish, write
from .measure import attacks_of, measure, tell
from .photos import Photo, load_photos
from .regeneration import PURIFY, lost_at
from .report import PLAIN, purification_curve
from .statistics import bootstrap, by_photo, positive, present
from .systems import Onrw

__all__ = ["BUDGETS", "VARIANTS", "Variant", "add_arguments", "run", "spaces_report", "spaces_table"]

SUITES = ("onrw12", "onrw12-random", "extended", "regeneration")
BUDGETS = ("iterations", "time")
OUT = Path("bench-spaces")
CHECKS = 16  # random attacks that a step size is judged by
REFERENCE = "noise"  # whose time is everybody's
BASELINE = "pixel"  # what differences are taken to
FPR = 1e-6
LATENT_RATES = (0.1, 0.2, 0.4)

Record = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An optimised variable, with its settings.

    Attributes:
        changes: Of the preset's settings.
        rates: Step sizes to choose from.
    """

    changes: dict[str, Any]
    rates: tuple[float, ...]


VARIANTS = {
    "pixel": Variant({"space": "pixel"}, (0.001, 0.01, 0.1)),
    "latent": Variant({"space": "latent"}, LATENT_RATES),
    "noise": Variant({"space": "noise"}, LATENT_RATES),
    "noise-far": Variant({"space": "noise", "start_sigma": 1.0, "steps": 4}, LATENT_RATES),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench spaces`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of photos to report on")
    add("--train", type=Path, required=True, help="folder of other photos, to choose step sizes and measure seconds on")
    add("--tune", type=int, default=2, metavar="N", help="photos of --train (default: 2)")
    add("--match", default="*", help="only files of --images of this pattern")
    add("--limit", type=int, default=12, help="photos of --images (default: 12)")
    add("--size", type=int, default=512, help="pixels of the shorter side")
    add("--bits", type=int, default=48)
    add("--target-psnr", type=float, default=42.0, help="dB")
    add("--iterations", type=int, default=24, help="of every variant, and of noise in time")
    add("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    add("--mixes", nargs="+", choices=tuple(MIXES), default=["all", "regeneration"])
    add("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    add("--start-sigma", type=float, help="of noise-far")
    add("--steps", type=int, help="of noise-far")
    add("--suite", nargs="+", choices=SUITES, default=["onrw12", "extended", "regeneration"])
    add("--purify", type=float, nargs="+", metavar="SIGMA", help="strengths of the purification")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=OUT, help="folder of marks, readings, report and chart")
    add("--reread", action="store_true", help="forget cached readings, after a change of the reader")
    add("--no-chart", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON and chart; 0 on success."""
    start = time.perf_counter()
    photos = load_photos(args.images, args.size, args.match, args.limit)
    training = load_photos(args.train, args.size, limit=args.tune)
    both = {p.digest for p in photos} & {p.digest for p in training}
    if both:
        raise ValueError(f"--train {args.train}: {len(both)} of its photos are among --images; give other ones")
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    mini = load_mini(args.device)
    trials = Trials(
        training,
        key,
        mini,
        PRESETS["fast"].with_(target_psnr=args.target_psnr, iterations=args.iterations, on_image=0.0),
        changes_of(args.start_sigma, args.steps),
        args.size,
        args.bits,
        args.seed,
        args.device,
        args.out / "tuning",
    )
    rows, systems = trials.plan(args.variants, args.mixes, args.budgets)
    caches = {s.name: Cache(args.out, s, args.seed, args.reread) for s in systems.values()}
    attacks = attacks_of(args.suite, args.seed, mini, args.device, args.purify)
    marks, readings = measure(list(systems.values()), caches, photos, attacks, key, args.seed)
    report = {
        "photos": len(photos),
        "size": args.size,
        "bits": args.bits,
        "target_psnr": args.target_psnr,
        "rows": spaces_report(rows, marks, readings),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(spaces_table(report))
    publish(args.out / "report.json", report)
    if not args.no_chart:
        from .charts import spaces_chart

        spaces_chart(report, args.out / "spaces.png")
        say(f"chart: {args.out / 'spaces.png'}")
    return 0


def changes_of(start_sigma: float | None = None, steps: int | None = None) -> dict[str, dict[str, Any]]:
    """What each variant changes of the preset's settings, with start sigma and steps of noise-far where given."""
    changes = {name: dict(variant.changes) for name, variant in VARIANTS.items()}
    given = {"start_sigma": start_sigma, "steps": steps}
    changes["noise-far"] |= {name: value for name, value in given.items() if value is not None}
    return changes


@dataclass(frozen=True)
class Trials:
    """Marks training photos to choose step sizes and to measure seconds.

    Attributes:
        photos: The training photos.
        key: Of the marks.
        mini: The model.
        base: Settings of every variant.
        changes: By variant, what differs from `base`.
        size: The working size in pixels.
        bits: Of a message.
        seed: Of all random draws.
        device: Where the model is.
        folder: Of the records.
    """

    photos: list[Photo]
    key: Key
    mini: Mini
    base: Settings
    changes: dict[str, dict[str, Any]]
    size: int
    bits: int
    seed: int
    device: str
    folder: Path

    def settings(self, variant: str, mix: str, rate: float, iterations: int) -> Settings:
        """Of a variant; without an early stop."""
        changes = self.changes[variant] | {"learning_rate": rate, "iterations": iterations, "patience": iterations}
        return self.base.with_(mix=mix, **changes)

    def tuned(self, variant: str, mix: str) -> Record:
        """The best step size of a variant and the seconds of an iteration, all of marking counted."""
        losses, seconds = {}, []
        for rate in VARIANTS[variant].rates:
            settings = self.settings(variant, mix, rate, self.base.iterations)
            trials = [self.trial(settings, photo) for photo in self.photos]
            losses[rate] = fmean(t["loss"] for t in trials)
            seconds += [t["seconds"] for t in trials]
        rate = min(losses, key=losses.get)
        tell(f"{variant}, mix {mix}: step size {rate:g} of {', '.join(f'{r:g}: {v:.3f}' for r, v in losses.items())}")
        return {"rate": rate, "losses": losses, "seconds": fmean(seconds)}

    def trial(self, settings: Settings, photo: Photo) -> Record:
        """One photo marked with one step size: message loss under random attacks of the mix, seconds an iteration."""
        model, autoencoder, encode = self.mini.model, self.mini.autoencoder, self.mini.encode
        told = {"settings": asdict(settings), "size": self.size, "bits": self.bits, "seed": self.seed}
        told |= {"photo": photo.digest, "model": f"{model.name} {autoencoder.name}"}
        path = self.folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        extractor = KeyedExtractor(self.key, self.bits)
        bits = random_id(self.key, generator_for(self.seed, photo.name, "message"), self.bits).bits
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        start = clock()
        marked = embed(
            photo.image.to(self.device), model, autoencoder, extractor, bits, positive=encode(photo.prompt),
            null=encode(""), settings=settings, generator=generator_for(self.seed, photo.name, "tuning"),
            size=self.size,
        )  # fmt: skip
        seconds = clock() - start
        made = regenerations(model, autoencoder, marked.watermarks[0].inversion.unconditional)
        losses = []
        with torch.no_grad():
            attacks = training_mix(settings.mix, made).draw(generator_for(self.seed, "checks"), CHECKS)
            for i, attack in enumerate(attacks):
                attacked = attack(marked.image[None].to(self.device), generator_for(self.seed, photo.name, "check", i))
                losses.append(float(extractor.loss(attacked.images, bits, attacked.geometry).mean()))
        record = {"loss": fmean(losses), "seconds": seconds / marked.iterations}
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(told | record))
        return record

    def plan(self, variants: list[str], mixes: list[str], budgets: list[str]) -> tuple[list[Record], dict[str, Onrw]]:
        """What is to be measured: a row for each mix, budget and variant; rows of the same settings share a system."""
        rows: list[Record] = []
        systems: dict[str, Onrw] = {}
        for mix in mixes:
            tuned = {name: self.tuned(name, mix) for name in {*variants, REFERENCE}}
            seconds = self.base.iterations * tuned[REFERENCE]["seconds"]
            for budget in budgets:
                for name in variants:
                    iterations = self.base.iterations
                    if budget == "time":
                        iterations = max(1, round(seconds / tuned[name]["seconds"]))
                    settings = self.settings(name, mix, tuned[name]["rate"], iterations)
                    label = f"{name}, mix {mix}, {iterations} iterations"
                    extractor = KeyedExtractor(self.key, self.bits)
                    systems[label] = Onrw(
                        label, extractor, settings, self.mini, self.size, self.key.fingerprint, self.device
                    )
                    rows.append({"variant": name, "mix": mix, "budget": budget, "system": label}
                                | {"iterations": iterations, "rate": tuned[name]["rate"]}
                                | {"tried": tuned[name]["losses"]})  # fmt: skip
        return rows, systems


def spaces_report(
    rows: list[Record], marks: dict[str, list[Record]], readings: dict[str, list[Record]]
) -> list[Record]:
    """The rows with their figures.

    Args:
        rows: variant, mix, budget, system, and further facts.
        marks: Name of system -> records of its marked photos.
        readings: Name of system -> records of its readings.
    """
    report = []
    for row in rows:
        own = readings[row["system"]]
        notes = marks[row["system"]]
        same = {"mix": row["mix"], "budget": row["budget"], "variant": BASELINE}
        base = next((r["system"] for r in rows if same.items() <= r.items()), None)
        suites = {}
        for name in dict.fromkeys(r["suite"] for r in own if r["suite"] != PLAIN):
            of = [r for r in own if r["suite"] == name]
            accuracy, tpr = by_photo(of), by_photo(of, lambda r: positive(r, FPR))
            suites[name] = {
                "bit_accuracy": fmean(accuracy.values()),
                "interval": bootstrap(list(accuracy.values())),
                "tpr": fmean(tpr.values()),
                "tpr_interval": bootstrap(list(tpr.values())),
            }
            if base is not None and row["variant"] != BASELINE:
                other = by_photo(r for r in readings[base] if r["suite"] == name)
                differences = [accuracy[photo] - other[photo] for photo in other]
                suites[name] |= {"margin": fmean(differences), "margin_interval": bootstrap(differences)}
        report.append(
            row
            | {key: fmean(n[key] for n in notes) for key in ("psnr", "ssim", "seconds")}
            | {"suites": suites, "purification": purification_curve(own)}
        )
        if report[-1]["purification"]:
            report[-1]["purification"]["lost_interval"] = _lost_interval(own, report[-1]["purification"]["curve"])
    return report


def _lost_interval(records: list[Record], curve: list[Record]) -> tuple[float, float]:
    """The interval by photo of the sigma at which presence is lost, or of the greatest sigma if it never is."""
    sigmas = [point["sigma"] for point in curve]
    columns = [
        by_photo((r for r in records if r["label"] == f"{PURIFY}{s:g}"), lambda r: present(r, FPR)) for s in sigmas
    ]
    table = [[column[photo] for column in columns] for photo in columns[0]]

    def lost(sample) -> float:
        found = lost_at(list(zip(sigmas, sample.mean(0), strict=True)))
        return sigmas[-1] if found is None else found

    return bootstrap(table, lost)


def spaces_table(report: Record) -> str:
    """The report as text."""
    lines = [
        f"{report['photos']} photos of {report['size']} px, {report['bits']} bits, {report['target_psnr']:g} dB: bits "
        "right, per cent [95 % interval by photo], difference to pixel, presence and message at 1e-6"
    ]
    group = None
    for row in report["rows"]:
        if (row["mix"], row["budget"]) != group:
            group = (row["mix"], row["budget"])
            lines += ["", f"mix {row['mix']}, equal {row['budget']}"]
        lines.append(
            f"{row['variant']:<10}{row['iterations']:>4} iterations, step {row['rate']:g}, {row['seconds']:.1f} s, "
            f"{row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}"
        )
        for suite, f in row["suites"].items():
            margin = f"{_range(f['margin'], f['margin_interval'], '+')}" if "margin" in f else ""
            tpr = _range(f["tpr"], f["tpr_interval"])
            lines.append(f"  {suite:<14}{_range(f['bit_accuracy'], f['interval']):<26}{margin:<26}{tpr}")
        if row["purification"]:
            low, high = row["purification"]["lost_interval"]
            lost = row["purification"]["lost_at"]
            where = "never" if lost is None else f"at sigma {lost:.2f} [{low:.2f}, {high:.2f}]"
            lines.append(f"  presence lost by purification {where}")
    return "\n".join(lines)


def _range(value: float, interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * value:{sign}.2f} [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]"
