"""`onrw bench sensitivity`: effect of the hand-chosen constants of the keyed extractor's loss.

Photos are marked at equal quality with each constant of `CONSTANTS` as it is, and changed to lower and higher values.
The marks are attacked and read with known geometry, so that the search's chance has no part in the figures: share of
right bits, and the lower decile of the signed logits, which falls before bits do. Marks are made in pixel space by
default, where the loss is all that shapes them. Finished rows are kept in the output folder, so that an interrupted run
resumes. Give photos that nothing is reported on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..attacks import parse
from ..extractors.keyed import extractor as keyed
from ..extractors.keyed.extractor import KeyedExtractor
from ..mini import Mini, load_mini
from ..payload.keys import Key
from ..payload.message import random_id
from ..pipeline import embed
from ..stages.constrained_denoising import SPACES
from ..stages.noise_optimisation import PRESETS
from .cache import generator_for, publish, write
from .measure import tell
from .photos import Photo, load_photos

__all__ = ["CONSTANTS", "add_arguments", "run"]

CONSTANTS: dict[str, tuple[float, float]] = {  # name -> a lower and a higher value
    "MARGIN": (0.5, 2.0),
    "SYNC_MARGIN": (0.25, 0.7),
    "WINDOW_MARGIN": (0.18, 0.7),
    "WINDOW_SYNC_MARGIN": (0.2, 0.7),
    "WINDOW": (3, 7),
    "WINDOW_WEIGHT": (0.3, 0.9),
    "SHARPNESS": (3.0, 12.0),
    "STRENGTH_WEIGHT": (0.0, 0.1),
}
ATTACKS = ("crop=.1", "crop=.2+jpeg=60", "rotation=17+jpeg=50", "resize=.3", "noise=.06", "brightness=2", "blur=1.3")
BITS = 48
OUT = Path("bench-sensitivity")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench sensitivity`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of photos")
    add("--match", default="*", help="only files of this pattern")
    add("--limit", type=int, default=3, help="at most so many photos (default: 3)")
    add("--size", type=int, default=256, help="pixels of the shorter side (default: 256)")
    add("--iterations", type=int, default=8, help="of the preset fast (default: 8)")
    add("--space", choices=SPACES, default="pixel", help="what is optimised (default: pixel)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=OUT, help="folder of rows and report")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON; 0 on success."""
    photos = load_photos(args.images, args.size, args.match, args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    mini = load_mini()
    changes = [(name, value) for name, values in CONSTANTS.items() for value in values]
    rows = []
    for name, value in [("SHARPNESS", keyed.SHARPNESS), *changes]:  # the first row changes nothing
        rows.append(_row(args, photos, mini, name, value))
        tell(_line(rows[-1], rows[0]))
    settings = {"photos": len(photos), "size": args.size, "iterations": args.iterations, "space": args.space}
    publish(args.out / "report.json", settings | {"attacks": ATTACKS, "rows": rows})
    print(f"{'constant':<28}{'bits':>8}{'decile':>9}")
    print("\n".join(_line(row, rows[0]) for row in rows))
    return 0


@contextmanager
def _changed(name: str, value: float) -> Iterator[None]:
    before = getattr(keyed, name)
    setattr(keyed, name, value)
    try:
        yield
    finally:
        setattr(keyed, name, before)


def _row(args: argparse.Namespace, photos: list[Photo], mini: Mini, name: str, value: float) -> Row:
    """Figures of marks that were made with one constant changed; from the output folder where they are there."""
    told = (name, f"{value:g}", args.space, len(photos), args.size, args.iterations, args.seed)
    path = args.out / f"{'-'.join(map(str, told))}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    margins = []
    for photo in photos:
        key = Key(bytes(range(32)))
        extractor = KeyedExtractor(key, BITS)
        bits = random_id(key, generator_for(args.seed, photo.name, "message"), BITS).bits
        with _changed(name, value):
            marked = embed(
                photo.image,
                mini.model,
                mini.autoencoder,
                extractor,
                bits,
                positive=mini.encode(photo.prompt),
                null=mini.encode(""),
                settings=PRESETS["fast"].with_(
                    space=args.space, iterations=args.iterations, patience=args.iterations, warm_steps=1
                ),
                generator=generator_for(args.seed, photo.name, "marking"),
                size=args.size,
            )
        for text in ATTACKS:
            attacked = parse(text)(marked.image[None], generator_for(args.seed, photo.name, text))
            with torch.no_grad():
                logits = extractor.logits(attacked.images, attacked.geometry)[0]
            margins.append(logits * (2 * bits - 1))
    every = torch.cat(margins)
    row = {
        "name": f"{name} = {value:g}",
        "bits": (every > 0).double().mean().item(),
        "decile": every.quantile(0.1).item(),
    }
    write(path, json.dumps(row))
    return row


def _line(row: Row, base: Row) -> str:
    change = 100 * (row["bits"] - base["bits"])
    return f"{row['name']:<28}{row['bits']:>8.2%}{row['decile']:>9.3f}  {change:+.2f} points of bits"
