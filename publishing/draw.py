"""Draws the pack's icon and banner: icon.svg, icon.png (400 x 400), banner.svg and banner.png (1260 x 540, 21:9).

    python publishing/draw.py

needs Chromium, which turns the drawings into PNG files.
"""

from __future__ import annotations

import math
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NIGHT, DUSK, SUN, NEAR, FAR, MARK, PAPER = "#14203a", "#3d5a80", "#f2a65a", "#1d3557", "#457b9d", "#8ef0c8", "#f4f7fb"
CELL = 16
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"


def picture(side: int) -> str:
    """A landscape whose right half shows the tile of a watermark: `side` x `side`."""
    rng = random.Random(5)
    half, xs = side / 2, range(0, side + 1, 8)

    def ridge(base: float, height: float, phase: float) -> str:
        waves = ((x, 0.6 * math.sin(x / side * 5 + phase) + 0.4 * math.sin(x / side * 11 + 2 * phase)) for x in xs)
        return " ".join(f"L{x} {base - height * wave:.1f}" for x, wave in waves)

    dots = []
    for row in range(side // CELL):
        for column in range(side // CELL // 2):
            x, y = half + (column + 0.5) * CELL, (row + 0.5) * CELL
            radius = rng.choice((1.6, 2.4, 3.4, 4.4))
            fade = min(1.0, (x - half) / (half * 0.5) + 0.25)
            dots.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' opacity='{fade:.2f}'/>")
    return (
        f"<clipPath id='frame'><rect width='{side}' height='{side}' rx='{side * 0.11:.0f}'/></clipPath>"
        f"<linearGradient id='sky' x2='0' y2='1'><stop stop-color='{DUSK}'/><stop offset='1' stop-color='#9cc5d9'/>"
        f"</linearGradient><g clip-path='url(#frame)'><rect width='{side}' height='{side}' fill='url(#sky)'/>"
        f"<circle cx='{side * 0.3:.0f}' cy='{side * 0.3:.0f}' r='{side * 0.1:.0f}' fill='{SUN}'/>"
        f"<path d='M0 {side} {ridge(side * 0.62, side * 0.1, 0.4)} L{side} {side}Z' fill='{FAR}'/>"
        f"<path d='M0 {side} {ridge(side * 0.8, side * 0.09, 2.0)} L{side} {side}Z' fill='{NEAR}'/>"
        f"<rect x='{half}' width='{half}' height='{side}' fill='{NIGHT}' opacity='.45'/>"
        f"<g fill='{MARK}'>{''.join(dots)}</g>"
        f"<path d='M{half} 0V{side}' stroke='{PAPER}' stroke-width='{side / 80:.1f}'/></g>"
    )


def icon() -> str:
    return f"<svg xmlns='http://www.w3.org/2000/svg' width='400' height='400'>{picture(400)}</svg>"


def banner() -> str:
    lines = ("Invisible watermarks that survive", "crops, screenshots and JPEG", "for ComfyUI and the command line")
    text = "".join(
        f"<text x='530' y='{300 + 52 * i}' {FONT} font-size='36' fill='{PAPER}' opacity='.85'>{line}</text>"
        for i, line in enumerate(lines)
    )
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' width='1260' height='540'>"
        f"<rect width='1260' height='540' fill='{NIGHT}'/>"
        f"<g transform='translate(70 70)'>{picture(400)}</g>"
        f"<text x='526' y='210' {FONT} font-size='110' font-weight='bold' fill='{PAPER}'>ONRW</text>{text}</svg>"
    )


def png(svg: Path, width: int, height: int) -> None:
    """Write an SVG file as PNG beside it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("Chromium is needed to write PNG files")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f"<body style='margin:0'>{svg.read_text(encoding='utf-8')}</body>", encoding="utf-8")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--default-background-color=00000000", f"--user-data-dir={folder}/profile"]
        flags += [f"--window-size={width},{height + 200}", f"--screenshot={folder}/shot.png"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True)
        from PIL import Image

        with Image.open(Path(folder) / "shot.png") as shot:
            shot.crop((0, 0, width, height)).save(svg.with_suffix(".png"), optimize=True)


def main() -> None:
    for name, drawing, size in (("icon", icon(), (400, 400)), ("banner", banner(), (1260, 540))):
        file = HERE / f"{name}.svg"
        file.write_text(drawing + "\n", encoding="utf-8")
        png(file, *size)


if __name__ == "__main__":
    main()
