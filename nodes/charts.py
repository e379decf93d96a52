"""Charts as images, drawn with Pillow: curves of an optimisation, bars of a robustness report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["bars", "curves"]

BACKGROUND, INK, GRID = (250, 250, 248), (40, 44, 52), (222, 222, 218)
BLUE, ORANGE, GREEN, RED = (38, 110, 180), (226, 120, 30), (60, 150, 85), (200, 62, 62)
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 56, 34, 34
ROW = 26
LABELS, VALUES = 190, 150
GOOD, FAIR = 0.95, 0.8


def curves(histories: Sequence[Sequence[dict[str, float]]]) -> Tensor:
    """Message loss (left scale) and bit accuracy (right scale) over the iterations: one IMAGE per history."""
    return torch.cat([_tensor(_curves(history)) for history in histories])


def _curves(history: Sequence[dict[str, float]]) -> Image.Image:
    losses = [entry["message_loss"] for entry in history]
    accuracy = [entry["bit_accuracy"] for entry in history]
    low, high = min(losses), max(losses)
    high = high if high > low else low + 1.0
    canvas, draw, font = _canvas(WIDTH, HEIGHT)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    for i in range(5):
        y = TOP + height * i / 4
        draw.line([LEFT, y, LEFT + width, y], fill=GRID)
        draw.text((6, y - 6), f"{high - (high - low) * i / 4:.3g}", fill=BLUE, font=font)
        draw.text((LEFT + width + 8, y - 6), f"{1 - i / 8:.1%}", fill=ORANGE, font=font)
    for values, bottom, top, colour in ((losses, low, high, BLUE), (accuracy, 0.5, 1.0, ORANGE)):
        points = [
            (
                LEFT + width * i / max(1, len(values) - 1),
                TOP + height * (1 - np.clip((v - bottom) / (top - bottom), 0, 1)),
            )
            for i, v in enumerate(values)
        ]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=2)
    draw.text((LEFT, 10), "message loss", fill=BLUE, font=font)
    draw.text((LEFT + 130, 10), "bit accuracy under attack", fill=ORANGE, font=font)
    draw.text((LEFT + 340, 10), f"PSNR {history[-1]['psnr']:.2f} dB", fill=INK, font=font)
    draw.text((LEFT, HEIGHT - BOTTOM + 10), f"1 ... {len(history)} iterations", fill=INK, font=font)
    return canvas


def bars(title: str, rows: Sequence[tuple[str, float, bool]]) -> Tensor:
    """A bar of bit accuracy per attack: (label, accuracy, detected) -> IMAGE (1, H, W, 3)."""
    canvas, draw, font = _canvas(WIDTH, TOP + ROW * len(rows) + 16)
    draw.text((12, 10), title, fill=INK, font=font)
    width = WIDTH - LABELS - VALUES
    for index, (label, accuracy, detected) in enumerate(rows):
        y = TOP + ROW * index
        colour = GREEN if accuracy >= GOOD else ORANGE if accuracy >= FAIR else RED
        length = width * max(0.0, (accuracy - 0.5) * 2)
        draw.text((12, y + 6), label[:28], fill=INK, font=font)
        draw.rectangle([LABELS, y + 4, LABELS + width, y + ROW - 4], fill=GRID)
        draw.rectangle([LABELS, y + 4, LABELS + length, y + ROW - 4], fill=colour)
        found = "detected" if detected else "not detected"
        draw.text((LABELS + width + 10, y + 6), f"{accuracy:6.1%}  {found}", fill=INK, font=font)
    return _tensor(canvas)


def _canvas(
    width: int, height: int
) -> tuple[Image.Image, ImageDraw.ImageDraw, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    return canvas, ImageDraw.Draw(canvas), ImageFont.load_default(13)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]
