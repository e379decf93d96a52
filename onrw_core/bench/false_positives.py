"""`onrw bench false-positives`: empirical against nominal false-positive rate of both layers.

Unmarked photos, changed as photos are (`FORMS`, then a random attack of the suite onrw12-random), are read with wrong
keys. The geometries that a reading tries, and the tiles in each, do not depend on the key. So they are found once for
each photo, and compared with the patterns of as many keys as wanted. What a reading does beyond that, the refinement of
a promising geometry, follows the sync pattern, which is not counted a second time; the payload is independent of it.
The matched filter depends on the key and is computed for each. The public layer has no key: each photo is one reading.

Of all readings, the share with p <= a should be a, for every a. Photos are the independent draws: the interval is a
bootstrap over them. Tiles and p-values are kept in the output folder; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..attacks import attack, suite
from ..commands.output import say
from ..extractors.keyed.pilot_search import PilotSearch, detect
from ..extractors.keyed.reader import KEY_WEIGHT, Place, by_key, places, tiles_at
from ..extractors.keyed.secret_layer import SecretLayer, find_each, log10_presence_of_each
from ..imaging.files import load
from ..payload.keys import Key
from .cache import generator_for, publish, write
from .periodic import periodic
from .photos import SUFFIXES, sized

__all__ = ["PATHS", "RATES", "add_arguments", "calibration", "run", "unmarked"]

RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
# The secret layer as received, after the search for the pilot, and with the key alone; the public layer as received, on
# periodic pictures, and after the search.
PATHS = ("plain", "search", "key", "public", "public-periodic", "public-search")
FORMS = ("whole", "512", "256")  # as it is; brought to 512 pixels of the shorter side; its middle of 256 x 256
LEVELS = np.logspace(-1, -6, 51)  # of the curve
RESAMPLED = 2000  # bootstrap draws
INTERVAL = (2.5, 97.5)  # per cent
OUT = Path("bench-false-positives")
REPORT_EVERY = 50  # photos or keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench false-positives`."""
    add = parser.add_argument
    add("--images", type=Path, nargs="+", required=True, help="folders of unmarked photos")
    add("--photos", type=int, metavar="N", help="take N of them, evenly spread over the folders' files")
    add("--readings", type=int, default=300_000, help="plain readings at least")
    add("--keys", type=int, default=300, help="wrong keys at least")
    add("--search-keys", type=int, default=0, metavar="N", help="of them, read N with the whole search too; slow")
    add("--search-photos", type=int, metavar="N", help="and so many of the photos (default: all)")
    add("--filter-keys", type=int, default=0, metavar="N", help="of them, read N with the key alone; slow")
    add("--public-photos", type=int, default=0, metavar="N", help="photos whose public layer is read")
    add("--public-search-photos", type=int, default=0, metavar="N", help="of them, read N with the whole search; slow")
    add("--periodic", type=int, default=0, metavar="N", help="drawn periodic pictures whose public layer is read")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=OUT, help="folder of tiles, p-values, report and plot")
    add("--no-chart", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON and plot; 0 on success."""
    files = _spread([file for folder in args.images for file in _files(folder)], args.photos)
    some = _spread(files, args.search_photos)
    chosen = {
        "plain": files,
        "search": some,
        "key": some,
        "public": _spread(files, args.public_photos),
        "public-periodic": [Path(f"periodic-{i}") for i in range(args.periodic)],
        "public-search": _spread(files, args.public_search_photos),
    }
    keys = {
        "plain": max(args.keys, math.ceil(args.readings / len(files))) if args.readings else 0,
        "search": args.search_keys,
        "key": args.filter_keys,
        "public": int(args.public_photos > 0),
        "public-periodic": int(args.periodic > 0),
        "public-search": int(args.public_search_photos > 0),
    }
    report: dict[str, Any] = {"seed": args.seed}
    for path in PATHS:
        if keys[path]:
            folder = _folder(args.out, path, chosen[path], args.seed)
            report[path] = calibration(_p_values(path, chosen[path], keys[path], args.seed, folder))
    print(_table(report))
    publish(args.out / "report.json", report)
    if not args.no_chart:
        from .charts import false_positives_chart

        false_positives_chart(report, args.out / "false-positives.png")
        say(f"chart: {args.out / 'false-positives.png'}")
    return 0


def unmarked(file: Path, seed: int) -> tuple[Tensor, str]:
    """A photo as it might be received, (1, 3, H, W), and what was done to it; the same for the same name and seed."""
    generator = generator_for(seed, file.stem, "unmarked")
    form = FORMS[int(torch.randint(len(FORMS), (), generator=generator))]
    image = load(file).rgb
    if form == "512":
        image = sized(image, int(form))
    elif form == "256":
        top, left = (max(0, side - int(form)) // 2 for side in image.shape[-2:])
        image = image[:, top : top + int(form), left : left + int(form)]
    actions = [attack("identity"), *suite("onrw12-random", generator)]
    action = actions[int(torch.randint(len(actions), (), generator=generator))]
    return action(image[None], generator).images, f"{form}, {action}"


def _files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--images {folder}: no image in it; give a folder of photos")
    return files


def _spread(files: list[Path], number: int | None) -> list[Path]:
    """So many files, evenly spread over the list; None for all."""
    if number is None or number >= len(files):
        return files
    return [files[i * len(files) // number] for i in range(number)]


def _folder(out: Path, path: str, files: list[Path], seed: int) -> Path:
    """Where the tiles and p-values of these photos are kept."""
    settings = {"seed": seed, "photos": [f"{f.name} {f.stat().st_size if f.is_file() else 0}" for f in files]}
    text = json.dumps(settings, indent=1)
    folder = out / f"{path}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "settings.json", text)
    return folder


def _p_values(path: str, files: list[Path], keys: int, seed: int, folder: Path) -> np.ndarray:
    """Presence p-values (base-10 logarithm) of all readings, (keys, photos); what the folder lacks is made.

    Photo by photo, since the tiles of one photo are compared with all keys.
    """
    layers: list[SecretLayer] = []
    columns = []
    for number, file in enumerate(files, 1):
        column = folder / f"{file.stem}.npy"
        known = np.load(column) if column.is_file() else np.empty(0, np.float32)
        if len(known) < keys:
            if not path.startswith("public") and not layers:
                layers = [_layer(i, seed) for i in range(keys)]
            if path == "public-periodic":
                image = periodic(number, generator_for(seed, "periodic", number))[None]
            else:
                image = unmarked(file, seed)[0]
            new = _readings(path, image, layers[len(known) :])
            known = np.concatenate([known, new])
            _keep(column, known)
            if number % REPORT_EVERY == 0:
                say(f"{path}: photo {number}/{len(files)}", sys.stderr)
        columns.append(known[:keys])
    return np.stack(columns, 1)


@cache
def _layer(number: int, seed: int) -> SecretLayer:
    """That of a wrong key."""
    return SecretLayer.from_key(Key(hashlib.sha256(f"wrong key {number} of {seed}".encode()).digest()))


def _readings(path: str, image: Tensor, layers: list[SecretLayer]) -> np.ndarray:
    """The p-values (base-10 logarithm) of one image, (keys,)."""
    if path.startswith("public"):
        return np.array([detect(image, search=path == "public-search", fpr=1e-300).log10_p], np.float32)
    finder = PilotSearch(image)
    if path == "key":
        found = [_best(finder, list(by_key(finder, layer, [None])), [layer]) for layer in layers]
        best = np.concatenate(found) + math.log10(KEY_WEIGHT)  # as if the key alone had all of the false-positive rate
    else:
        best = _best(finder, list(places(finder, None, None, path == "search")), layers)
    return np.minimum(best, 0).astype(np.float32)


def _best(finder: PilotSearch, tried: list[Place], layers: list[SecretLayer]) -> np.ndarray:
    """The least weighted p-value of some places for each key, (keys,)."""
    best = np.full(len(layers), np.inf)
    for place in tried:
        tiles = tiles_at(finder.views, place)[0]
        found = find_each(layers, tiles, place.tries, place.area, None if place.pilot is None else place.pilot.signed)
        best = np.minimum(best, log10_presence_of_each(layers, found) - math.log10(place.weight))
    return best


def _keep(file: Path, values: np.ndarray) -> None:
    """Write an array atomically."""
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("wb") as stream:
        np.save(stream, values.astype(np.float32))
    temporary.replace(file)


def calibration(log10_p: np.ndarray) -> dict[str, Any]:
    """Empirical rates of p-values.

    Args:
        log10_p: (keys, photos).

    Returns:
        readings, keys, photos, lowest_log10_p, and for `RATES` ("table") and `LEVELS` ("curve") rows of: nominal rate,
        count, empirical rate, and the ends of its 95 % interval by photo.
    """
    keys, photos = log10_p.shape
    draws = np.random.default_rng(0).multinomial(photos, [1 / photos] * photos, size=RESAMPLED) / photos

    def rows(levels: np.ndarray) -> list[dict[str, float]]:
        by_photo = np.stack([(log10_p <= math.log10(level)).mean(0) for level in levels], 1)
        low, high = np.percentile(draws @ by_photo, INTERVAL, axis=0)
        return [
            {
                "nominal": float(n),
                "count": round(r * keys * photos),
                "rate": float(r),
                "low": float(a),
                "high": float(b),
            }
            for n, r, a, b in zip(levels, by_photo.mean(0), low, high, strict=True)
        ]

    return {
        "readings": log10_p.size,
        "keys": keys,
        "photos": photos,
        "lowest_log10_p": float(log10_p.min()),
        "table": rows(np.array(RATES)),
        "curve": rows(LEVELS),
    }


def _table(report: dict[str, Any]) -> str:
    lines = []
    for path in PATHS:
        if path not in report:
            continue
        r = report[path]
        lines.append(f"{path}: {r['readings']} readings of {r['photos']} photos with {r['keys']} wrong keys")
        lines.append(f"{'nominal':>9}{'readings':>10}{'rate':>11}{'95 % by photo':>24}{'ratio':>8}")
        for row in r["table"]:
            interval = f"{row['low']:.3g} to {row['high']:.3g}"
            ratio = row["rate"] / row["nominal"]
            lines.append(f"{row['nominal']:>9g}{row['count']:>10}{row['rate']:>11.3g}{interval:>24}{ratio:>8.2f}")
        lines.append(f"lowest p: 1e{r['lowest_log10_p']:.1f}")
    return "\n".join(lines)
