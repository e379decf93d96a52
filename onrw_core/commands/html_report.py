"""A report as a page of HTML: one file, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from string import Template

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from .. import __version__
from ..imaging.geometry import Geometry
from ..imaging.rounding import to_8bit
from ..payload.keys import redacted
from .report import Report

__all__ = ["STYLE", "WEB", "render"]

WEB = Path(__file__).parent / "web"
STYLE = (WEB / "report.css").read_text(encoding="utf-8")
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

THUMBNAIL = 640  # pixels of the longer side
GRID = 64  # pixels of the marked frame between two lines: the tile of the watermark
MOST_LINES = 40
MARGIN = 0.06  # of the drawing, around the image

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'sha256-$hash'">
<title>$name: ONRW report</title>
<style>$style</style>
</head>
<body>
<main class="$state">
<h2>$headline</h2>
<dl>
$rows
</dl>
<figure>
$drawing
<figcaption>$caption</figcaption>
</figure>
<footer>ONRW $version, $when. A reading is a statement about the pixels, and no proof of authorship.</footer>
</main>
</body>
</html>
""")


def render(report: Report, now: datetime | None = None) -> str:
    """The page of a report.

    Args:
        report: The report.
        now: Its time; the current time by default.
    """
    when = (now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC")
    rows = (f"<dt>{escape(heading)}</dt><dd>{_shown(text)}</dd>" for heading, text in report.rows())
    geometry = report.reading.geometry if report.reading is not None and report.reading.detected else None
    caption = "The image."
    if geometry is not None:
        caption = f"The image as it lay in the marked frame; the lines are {GRID} pixels of the frame apart."
    return PAGE.substitute(
        hash=STYLE_HASH,
        style=STYLE,
        name=_shown(report.name),
        state="found" if report.found else "nothing",
        headline=_shown(report.headline),
        rows="\n".join(rows),
        drawing=drawing(report.image.rgb, geometry),
        caption=caption,
        version=__version__,
        when=when,
    )


def _shown(text: str) -> str:
    """A text of the report in HTML, without keys."""
    return escape(redacted(text))


def drawing(rgb: Tensor, geometry: Geometry | None) -> str:
    """The image in the marked frame, as SVG.

    Args:
        rgb: (3, H, W) in [0, 1].
        geometry: Maps the image to the marked frame; None to draw it as it is, without the lines of the frame.
    """
    height, width = rgb.shape[-2:]
    matrix = (geometry or Geometry.identity()).matrix
    corners = (geometry or Geometry.identity()).apply(torch.tensor([[0, 0], [width, 0], [width, height], [0, height]]))
    low, high = corners.min(0).values, corners.max(0).values
    margin = MARGIN * float((high - low).max()) if geometry is not None else 0.0
    left, top = (float(value) - margin for value in low)
    across, down = (float(value) + 2 * margin for value in high - low)
    # The affine part: SVG has no perspective, and the outline shows what is left of it.
    (a, c, e), (b, d, f), _ = (matrix / matrix[2, 2]).tolist()
    transform = " ".join(f"{value:.6g}" for value in (a, b, c, d, e, f))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners.tolist())
    pen = max(across, down) / 400
    lines = "" if geometry is None else _lines(left, top, across, down, pen)
    outline = (
        ""
        if geometry is None
        else f'<polygon points="{points}" fill="none" stroke="#1a7a43" stroke-width="{pen:.3g}"/>'
    )
    return (
        f'<svg viewBox="{left:.1f} {top:.1f} {across:.1f} {down:.1f}" role="img" aria-label="the image">'
        f'{lines}<image width="{width}" height="{height}" transform="matrix({transform})" href="{_thumbnail(rgb)}"/>'
        f"{outline}</svg>"
    )


def _lines(left: float, top: float, across: float, down: float, pen: float) -> str:
    step = GRID * math.ceil(max(across, down) / GRID / MOST_LINES)
    paths = [f"M{x} {top:.1f}v{down:.1f}" for x in range(math.ceil(left / step) * step, math.ceil(left + across), step)]
    paths += [f"M{left:.1f} {y}h{across:.1f}" for y in range(math.ceil(top / step) * step, math.ceil(top + down), step)]
    return f'<path d="{"".join(paths)}" stroke="#8a8a94" stroke-width="{pen / 3:.3g}" opacity=".6"/>'


def _thumbnail(rgb: Tensor) -> str:
    """A small JPEG of the image as a data URI; it has none of the file's metadata."""
    scale = min(1.0, THUMBNAIL / max(rgb.shape[-2:]))
    size = [max(1, round(side * scale)) for side in rgb.shape[-2:]]
    small = F.interpolate(rgb[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    content = io.BytesIO()
    Image.fromarray(rearrange(to_8bit(small), "c h w -> h w c").contiguous().numpy()).save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
