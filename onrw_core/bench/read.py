"""`onrw bench read`: time of reading, files and their decoding included.

Photos of 512 px, half of them with a watermark at 42 dB, as PNG and JPEG files in turn: read plainly one by one, and
several at a time as `onrw extract --plain` does. Then the whole blind search on unmarked photos, which is the longest
reading there is, at 512 px and at 4096 px. CPU seconds are given beside the others: they do not depend on what else the
machine does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..commands.threads import in_order
from ..extractors.keyed.extractor import KeyedExtractor
from ..extractors.reading import Reading
from ..imaging import files as images
from ..imaging.geometry import size_of
from ..imaging.metrics import LUMA_COLOUR
from ..payload.keys import Key
from .cache import generator_for, publish
from .photos import load_photos, sized

__all__ = ["add_arguments", "run"]

SIZE, LARGE = 512, 4096  # pixels of the shorter side
PSNR = 42.0  # dB
BITS = 48
SEARCHED, SEARCHED_LARGE = 2, 1  # photos


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench read`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of unmarked photos")
    add("--limit", type=int, default=40, help="at most so many photos (default: 40)")
    add("--threads", type=int, default=os.cpu_count(), help="photos read at a time (default: one a core)")
    add("--json", type=Path, help="report file")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON; 0 on success."""
    photos = load_photos(args.images, SIZE, limit=args.limit)
    extractor = KeyedExtractor(Key(bytes(32)), BITS)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, photo in enumerate(photos):
            image = _marked(photo.image, extractor, i) if i % 2 else photo.image
            files.append(Path(folder) / f"{i}{('.png', '.jpg')[i // 2 % 2]}")
            images.save(files[-1], image)

        def read(file: Path) -> Reading:
            return extractor.read(images.load(file).rgb, search=False)

        torch.set_num_threads(args.threads)
        read(files[0])  # what is computed once
        rows = {"plain, one by one": _timed(lambda: [read(file) for file in files])}
        rows["plain, several at a time"] = _timed(lambda: [f.result() for _, f in in_order(read, files, args.threads)])
    for side, count in ((SIZE, SEARCHED), (LARGE, SEARCHED_LARGE)):
        chosen = [sized(photo.image, side) for photo in photos[:count]]
        name = f"plain and search, {side} px"
        rows[name] = _timed(lambda chosen=chosen: [extractor.read(image) for image in chosen])
    report = {"photos": len(photos), "threads": args.threads, "rows": rows}
    print(_table(report))
    if args.json:
        publish(args.json, report)
    return 0


def _marked(image: Tensor, extractor: KeyedExtractor, number: int) -> Tensor:
    """A photo with the watermark of random bits added in a watermark's colour, not fitted to the photo."""
    bits = torch.randint(0, 2, (BITS,), generator=generator_for(number, "bits"))
    pattern = extractor.for_image(image[None]).pattern(bits, size_of(image))
    residual = pattern * image.new_tensor(LUMA_COLOUR)[:, None, None]
    return (image + residual * (10 ** (-PSNR / 20) / residual.square().mean().sqrt())).clamp(0, 1)


def _timed(work: Callable[[], list[Reading]]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    readings = work()
    n = len(readings)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = fmean(reading.detected for reading in readings)
    return {"photos": n, "seconds": wall / n, "cpu_seconds": cpu / n, "per_second": n / wall, "detected": found}


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'':<28}{'photos':>7}{'seconds':>9}{'CPU s':>8}{'a second':>10}{'found':>8}"]
    for name, row in report["rows"].items():
        figures = f"{row['seconds']:>9.3f}{row['cpu_seconds']:>8.3f}{row['per_second']:>10.1f}{row['detected']:>8.0%}"
        lines.append(f"{name:<28}{row['photos']:>7}{figures}")
    return "\n".join([*lines, f"{report['threads']} threads; seconds and CPU seconds for each photo"])
