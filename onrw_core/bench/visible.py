"""`onrw bench visible`: visibility and robustness of watermarks, for each image and each kind of image.

Every image is marked at its own size and judged by `judges`; the bits are read blindly after the attacks of onrw12.
The kind of an image ("photo", "portrait", "painting", "anime", "flat", "line art", "text", "dark") is what `kinds.tsv`
beside it says (file name, kind), and "photo" elsewhere. The contact sheet shows the place of each image where the
watermark is most visible, 96 x 96 pixels enlarged three times, original and marked side by side.

Everything is cached in the output folder and resumes after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .. import __version__
from ..commands.models import add_device, chosen_device
from ..commands.output import one_line
from ..extractors.keyed.extractor import KeyedExtractor
from ..mini import load_mini
from ..payload.keys import Key
from ..stages.noise_optimisation import PRESETS
from ..stages.quality import DEFAULT_QUALITY
from .cache import Cache, publish, write
from .judges import judged, judges, pixels
from .measure import attacks_of, measure, tell
from .peers import peers
from .photos import Photo, load_photos
from .report import PLAIN
from .statistics import positive
from .systems import Onrw, System

__all__ = ["add_arguments", "attacks_report", "contact_sheet", "run", "visible_report", "visible_table"]

OUT = Path("bench-visible")
KINDS = "kinds.tsv"
DEFAULT_KIND = "photo"
SUITE = "onrw12"
FPR = 1e-6
PLACE = 96  # pixels, side of the place that the contact sheet shows
ENLARGED = 3
CAPTION = 32  # pixels of height
COLUMNS = 3
# Of the judges: column, digits, and whether more is worse.
FIGURES = {
    "ssimulacra2": ("SSIM2", 1, False),
    "ssimulacra2_reference": ("ref.", 1, False),
    "butteraugli": ("3-norm", 2, True),
    "butteraugli_worst": ("b. worst", 1, True),
    "flip": ("FLIP", 4, True),
    "worst": ("worst", 1, True),
    "peak": ("peak", 0, True),
    "psnr": ("dB", 1, False),
    "bits": ("bits %", 1, False),
    "positive": ("1e-6 %", 1, False),
}
PERCENT = ("bits", "positive")

Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench visible`."""
    add = parser.add_argument
    add("--images", type=Path, nargs="+", required=True, metavar="DIR", help=f"folders of images, with {KINDS}")
    add("--match", default="*", help="only files of this pattern")
    add("--limit", type=int, help="largest number of images of each folder")
    add("--size", type=int, help="shorter side in pixels that images are resized to (default: no resizing)")
    add("--preset", choices=sorted(PRESETS), default="fast")
    add("--bits", type=int, default=48)
    add("--quality", type=float, nargs="+", default=[DEFAULT_QUALITY], metavar="Q", help="SSIMULACRA2 of the marks")
    add("--peers", action="store_true", help="the same for DwtDct, DwtDctSvd, RivaGAN and blind-watermark")
    add("--seed", type=int, default=0)
    add_device(parser)
    add("--out", type=Path, default=OUT, help="folder of marks, readings, report and contact sheets")
    add("--reread", action="store_true", help="forget cached readings, after a change of the reader")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON and contact sheets; 0 on success."""
    args.device = chosen_device(args.device)
    torch.manual_seed(args.seed)  # nothing draws from it; a peer might
    start = time.perf_counter()
    photos = [p for folder in args.images for p in load_photos(folder, args.size, args.match, args.limit)]
    kinds = _kinds(args.images)
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    mini = load_mini(args.device)
    extractor = KeyedExtractor(key, args.bits).to(args.device)
    systems: list[System] = []
    for quality in args.quality:
        settings = PRESETS[args.preset].with_(quality=quality)
        name = f"ONRW quality {quality:g}"
        systems.append(Onrw(name, extractor, settings, mini, args.size, key.fingerprint, args.device))
    systems += peers() if args.peers else []
    caches = {s.name: Cache(args.out, s, args.seed, args.reread) for s in systems}
    _, readings = measure(systems, caches, photos, attacks_of([SUITE], args.seed, None, args.device), key, args.seed)
    report = {
        "version": __version__,
        "judges": judges(),
        "systems": [
            {"name": s.name, "settings": s.settings(), "attacks": attacks_report(readings[s.name])}
            | {"pictures": visible_report(_judgements(caches[s.name], photos), readings[s.name], kinds)}
            for s in systems
        ],
        "seed": args.seed,
    }
    for s in systems:
        pairs = {p.name: (p.image, caches[s.name].mark(p)[0]) for p in photos}
        rows = next(r["pictures"] for r in report["systems"] if r["name"] == s.name)
        path = args.out / f"{caches[s.name].folder.name}.png"
        contact_sheet(rows, pairs).save(path)
        tell(f"contact sheet: {path}")
    report["seconds"] = round(time.perf_counter() - start, 1)
    print(visible_table(report))
    publish(args.out / "report.json", report)
    return 0


def visible_report(judgements: dict[str, Record], readings: list[Record], kinds: dict[str, str]) -> list[Record]:
    """One record per image: its name, kind and figures.

    Args:
        judgements: Name of the image -> its scores by `judges.judged`.
        readings: Of all images, after all attacks.
        kinds: Name of the image -> kind, if known.
    """
    rows = []
    for name, judgement in judgements.items():
        attacked = [r for r in readings if r["photo"] == name and r["suite"] != PLAIN]
        survived = {
            "bits": fmean(r["accuracy"] for r in attacked),
            "positive": fmean(positive(r, FPR) for r in attacked),
        }
        rows.append({"picture": name, "kind": kinds.get(name, DEFAULT_KIND), **judgement, **survived})
    return rows


def attacks_report(readings: list[Record]) -> Record:
    """Attack -> mean and lowest share of right bits, and share of readings with presence and message."""
    rows = {}
    for label in dict.fromkeys(r["label"] for r in readings):
        own = [r for r in readings if r["label"] == label]
        bits = [r["accuracy"] for r in own]
        rows[label] = {"bits": fmean(bits), "lowest": min(bits), "positive": fmean(positive(r, FPR) for r in own)}
    return rows


def visible_table(report: Record) -> str:
    """The report as text: one line per image, then mean and worst of each kind and of all; one line per attack."""
    lines = [f"judges: {', '.join(f'{name} {version}' for name, version in report['judges'].items()) or 'ONRW alone'}"]
    for s in report["systems"]:
        rows = s["pictures"]
        lines += ["", s["name"], f"{'image':<34}{'kind':<11}" + "".join(f"{c:>9}" for c, *_ in FIGURES.values())]
        lines += [_line(r["picture"], r["kind"], r) for r in rows]
        groups = {kind: [r for r in rows if r["kind"] == kind] for kind in dict.fromkeys(r["kind"] for r in rows)}
        for kind, group in (groups | {"all": rows}).items():
            for name, figure in (("mean", fmean), ("worst", None)):
                values = {}
                for key, (_, _, more_is_worse) in FIGURES.items():
                    known = [r[key] for r in group if r[key] is not None]
                    worst = max if more_is_worse else min
                    values[key] = (figure or worst)(known) if known else None
                lines.append(_line(f"{name} of {len(group)}", kind, values))
        lines += ["", f"{'attack':<34}{'bits %':>9}{'lowest':>9}{'1e-6 %':>9}"]
        lines += [
            f"{label:<34}" + "".join(f"{100 * row[key]:>9.1f}" for key in ("bits", "lowest", "positive"))
            for label, row in s["attacks"].items()
        ]
    return "\n".join(lines)


def _line(name: str, kind: str, figures: Record) -> str:
    def cell(key: str, digits: int) -> str:
        value = figures[key]
        return f"{'-':>9}" if value is None else f"{100 * value if key in PERCENT else value:>9.{digits}f}"

    return f"{one_line(name)[:33]:<34}{kind:<11}" + "".join(
        cell(key, digits) for key, (_, digits, _) in FIGURES.items()
    )


def contact_sheet(rows: list[Record], pairs: dict[str, tuple[Tensor, Tensor]]) -> Image.Image:
    """The worst place of each image, original on the left and marked on the right, with its figures above.

    Args:
        rows: From `visible_report`.
        pairs: Name of the image -> original and marked, (3, H, W) each.
    """
    side = PLACE * ENLARGED
    width, height = 2 * side + 8, side + CAPTION + 8
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(rows) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        x, y = i % COLUMNS * width, i // COLUMNS * height
        text = f"{row['kind']}: SSIMULACRA2 {row['ssimulacra2']:.1f}, {row['picture'][:24]}"
        draw.text((x + 2, y + 4), text, fill="black", font=ImageFont.load_default(20))
        for j, image in enumerate(pairs[row["picture"]]):
            place = Image.fromarray(pixels(_place(image, row["worst_at"])))
            place = place.resize((place.width * ENLARGED, place.height * ENLARGED), Image.Resampling.NEAREST)
            sheet.paste(place, (x + j * (side + 2), y + CAPTION))
    return sheet


def _place(image: Tensor, centre: list[int]) -> Tensor:
    """The `PLACE` x `PLACE` pixels around a pixel (row, column), inside the image."""
    top, left = (max(0, min(c - PLACE // 2, s - PLACE)) for c, s in zip(centre, image.shape[-2:], strict=True))
    return image[:, top : top + PLACE, left : left + PLACE]


def _judgements(cache: Cache, photos: list[Photo]) -> dict[str, Record]:
    """The scores of each marked image in the cache, stored with it."""
    found = {}
    for photo in photos:
        marked, note = cache.mark(photo)
        path = cache.folder / f"{photo.name}.judged.json"
        told = {"mark": note["mark"], "judges": judges(), "version": __version__}
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not told.items() <= known.items():
            known = told | judged(marked, photo.image)
            write(path, json.dumps(known))
        found[photo.name] = {k: v for k, v in known.items() if k not in told}
    return found


def _kinds(folders: list[Path]) -> dict[str, str]:
    """Name of the image, without suffix -> kind."""
    kinds = {}
    for path in (folder / KINDS for folder in folders):
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                kinds |= {Path(r[0]).stem: r[1] for r in csv.reader(file, delimiter="\t") if len(r) > 1}
    return kinds
