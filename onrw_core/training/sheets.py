"""Contact sheets as PNG: reconstructions and samples during training."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

__all__ = ["grid", "save_grid"]


def grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images (N,3,H,W) -> one image (3, rows*(H+gap), columns*(W+gap)), filled row by row, white between."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + gap), columns * (width + gap))
    for k, image in enumerate(images.detach().float().cpu()):
        top, left = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write images (N,3,H,W) in [0,1] as one sheet."""
    array = grid(images, columns).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)
