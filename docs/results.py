"""Draws docs/results.jpg: what is seen of a mark, and that it is read after a crop, a screenshot and JPEG.

    python docs/results.py

marks the bundled photo with a fixed key at the default quality, so the image is the same wherever it is drawn with
the same versions. The worst place is where the estimate of butteraugli (docs/quality.md) is largest.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import onrw_core as onrw
from onrw_core.attacks import parse
from onrw_core.commands.report import certainty
from onrw_core.imaging import files
from onrw_core.imaging.rounding import round_8bit, to_8bit
from onrw_core.imaging.visible_error import VisibleError

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "onrw_core" / "samples" / "monument.jpg"
OUTPUT = ROOT / "docs" / "results.jpg"
KEY = onrw.Key(bytes(range(32)))
TEXT = "Ann 5"
ATTACK = "crop=0.5+screenshot-border=0.75+jpeg=80"

WIDTH, MARGIN, GAP, PANEL = 1600, 40, 24, 490
PLACE, AMPLIFIED = 64, 10  # side of the worst place in pixels; factor of the difference
INK, FAINT, PAPER, GOOD = "#1c1c1e", "#63636a", "#ffffff", "#1a7a43"


def image(values: Tensor, side: int, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """(3, H, W) in [0, 1], fitted into a square of `side` pixels."""
    full = Image.fromarray(rearrange(to_8bit(values), "c h w -> h w c").contiguous().numpy())
    scale = side / max(full.size)
    return full.resize([max(1, round(length * scale)) for length in full.size], resample)


def worst_place(original: Tensor, marked: Tensor) -> tuple[int, int]:
    """(top, left) of the square of `PLACE` pixels whose centre has the largest visible error."""
    error = VisibleError(original[None]).map(marked[None])
    pooled = F.interpolate(error, size=original.shape[-2:], mode="nearest")[0, 0]
    y, x = divmod(int(pooled.argmax()), pooled.shape[1])
    height, width = original.shape[-2:]
    return min(max(0, y - PLACE // 2), height - PLACE), min(max(0, x - PLACE // 2), width - PLACE)


def main() -> None:
    original = files.load(PHOTO).rgb
    marked = onrw.embed(PHOTO, text=TEXT, key=KEY)
    attacked = round_8bit(parse(ATTACK)(marked.image[None], torch.Generator().manual_seed(0)).images)[0]
    reading = onrw.extract(attacked, key=KEY)
    assert reading.message.text == TEXT, f"{ATTACK}: {reading.message}"
    top, left = worst_place(original, marked.image)
    cut = (slice(None), slice(top, top + PLACE), slice(left, left + PLACE))
    difference = (0.5 + AMPLIFIED * (marked.image - original)).clamp(0, 1)

    small = (PANEL - GAP) // 2
    page = Image.new("RGB", (WIDTH, MARGIN + 40 + PANEL + 70 + small + 80), PAPER)
    draw = ImageDraw.Draw(page)
    title, body = (ImageFont.load_default(size) for size in (26, 20))
    columns = [MARGIN + i * (PANEL + GAP) for i in range(3)]
    y = MARGIN + 40
    for x, text, values in zip(columns, ("before", "after", "then"), (original, marked.image, attacked), strict=True):
        draw.text((x, MARGIN), text, INK, title)
        shown = image(values, PANEL)
        page.paste(shown, (x, y))
        if text != "then":
            scale = PANEL / max(original.shape[-2:])
            box = [x + left * scale, y + top * scale, x + (left + PLACE) * scale, y + (top + PLACE) * scale]
            draw.rectangle(box, outline=GOOD, width=3)
    draw.text((columns[2] + 70, MARGIN + 5), "cropped to half, screenshot, JPEG 80", FAINT, body)
    draw.text((columns[1] + 75, MARGIN + 5), f"SSIMULACRA2 {marked.ssimulacra2:.0f}, {marked.psnr:.1f} dB", FAINT, body)

    y += PANEL + 20
    draw.text((columns[0], y), f"the worst place, {PLACE} x {PLACE} pixels, enlarged", INK, body)
    draw.text((columns[1], y), f"the difference x {AMPLIFIED}", INK, body)
    y += 36
    details = (
        (columns[0], "before", original[cut]),
        (columns[0] + small + GAP, "after", marked.image[cut]),
        (columns[1], "everywhere", difference),
        (columns[1] + small + GAP, "the worst place", difference[cut]),
    )
    for x, text, values in details:
        page.paste(image(values, small, Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + small + 8), text, FAINT, body)

    draw.rectangle([columns[2], y, columns[2] + 8, y + small], fill=GOOD)
    lines = [("read from this image alone:", FAINT), (f'"{reading.message.text}"', GOOD)]
    draw.text((columns[2] + 28, y + 20), lines[0][0], lines[0][1], body)
    draw.text((columns[2] + 28, y + 60), lines[1][0], lines[1][1], ImageFont.load_default(48))
    sentence = certainty(reading.log10_p, reading.detected)
    draw.text((columns[2] + 28, y + 140), sentence.replace(" would", "\nwould"), INK, body)
    page.save(OUTPUT, quality=88)
    print(f"{OUTPUT.relative_to(ROOT)}: SSIMULACRA2 {marked.ssimulacra2:.1f}, {marked.psnr:.1f} dB, {sentence}")


if __name__ == "__main__":
    main()
