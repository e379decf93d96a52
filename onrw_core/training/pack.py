"""A small copy of a folder of captioned photos, for training on another machine: resized, WebP, within a size limit.

Training looks at photos of about 288 px on the shorter side; originals are many times larger. The copy is a folder
like any other that the trainer takes (photos and ``captions.tsv``).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ..imaging.formats import open_image
from .data import read_captions

__all__ = ["pack"]

log = logging.getLogger(__name__)
SIDE = 296  # pixels of the shorter side: latents of 36 positions and a little room
MOST_ASPECT = 1.6  # longer photos lose their ends
QUALITIES = (92, 86, 80, 72, 64, 55, 45, 35)
PROBES = 64  # photos that the quality is chosen on
SAFETY = 0.97
MEGABYTE = 2**20


def pack(photos: Path, out: Path, megabytes: float, side: int = SIDE) -> int:
    """Write the copy into `out`, at the best quality that keeps it within `megabytes`.

    Args:
        photos: Folder with photos and ``captions.tsv``.
        out: New folder.
        megabytes: Limit of all files together, MiB.
        side: Pixels of the shorter side.

    Returns:
        Bytes written.

    Raises:
        ValueError: The folder exists already, or not even the lowest quality fits.
    """
    if out.exists():
        raise ValueError(f"{out} exists; give the name of a new folder")
    entries = read_captions(photos)
    every = entries[:: max(1, len(entries) // PROBES)]
    limit = megabytes * MEGABYTE * SAFETY
    for quality in QUALITIES:
        size = sum(len(_encoded(path, side, quality)) for path, _ in every) / len(every) * len(entries)
        if size <= limit:
            break
    else:
        raise ValueError(
            f"{len(entries)} photos need about {size / MEGABYTE:.0f} MiB at the lowest quality; allow more than "
            f"{megabytes:g} MiB, or take a smaller side than {side}"
        )
    log.info("packing %d photos at quality %d", len(entries), quality)
    out.mkdir(parents=True)
    written, lines = 0, []
    for number, (path, caption) in enumerate(tqdm(entries, desc="packing", mininterval=5.0)):
        data = _encoded(path, side, quality)
        name = f"{number:05d}.webp"
        (out / name).write_bytes(data)
        lines.append(f"{name}\t{caption}\n")
        written += len(data)
    (out / "captions.tsv").write_text("".join(lines), encoding="utf-8")
    log.info("wrote %.1f MiB into %s", written / MEGABYTE, out)
    return written


def _encoded(path: Path, side: int, quality: int) -> bytes:
    with open_image(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    most = round(min(width, height) * MOST_ASPECT)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    image = image.crop((left, top, width - left, height - top))
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize([round(length * scale) for length in image.size], Image.Resampling.LANCZOS)
    stream = BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m onrw_core.training.pack", description=__doc__)
    parser.add_argument("photos", type=Path, help="folder with photos and captions.tsv")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--megabytes", type=float, default=42.0, help="limit (default: %(default)s)")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of the shorter side (default: %(default)s)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parser.parse_args(argv)
    pack(arguments.photos, arguments.out, arguments.megabytes, arguments.side)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
