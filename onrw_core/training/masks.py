"""Localisation of words by the cross-attention: the pseudo-mask inside and outside of hand-drawn boxes.

``boxes.json`` names photos that the model never trained on, the object's word in their caption, and boxes (left, top,
right, bottom; fractions of the central square) that together cover the object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..mini.adapter import Mini
from ..stages.constrained_denoising import Constraint, original_branch
from ..stages.inversion import invert
from ..stages.progress import result_of
from .data import read_square

__all__ = ["BOXES", "inside_outside", "mask_figures"]

BOXES = Path(__file__).parent / "boxes.json"
SIDE = 256
STEPS = 20
LEAST = 1e-6


def region(boxes: Iterable[Iterable[float]], side: int) -> Tensor:
    """True inside the boxes: (side, side)."""
    inside = torch.zeros(side, side, dtype=torch.bool)
    for box in boxes:
        left, top, right, bottom = (round(edge * side) for edge in box)
        inside[top:bottom, left:right] = True
    return inside


def inside_outside(mask: Tensor, inside: Tensor) -> tuple[float, float]:
    """Means of a mask (1,1,h,w) inside and outside of a region (H,W)."""
    mask = F.interpolate(mask, inside.shape, mode="nearest")[0, 0]
    return float(mask[inside].mean()), float(mask[~inside].mean().clamp_min(LEAST))


def ratio(means: Sequence[tuple[float, float]]) -> float:
    """Mean inside over mean outside, of several photos together."""
    inside, outside = np.mean(means, axis=0)
    return float(inside / outside)


@torch.no_grad()
def mask_figures(mini: Mini, entries: Iterable[tuple[Path, str]], boxes: Path = BOXES) -> dict:
    """Ratios of the soft pseudo-mask's mean inside the boxes to that outside.

    Args:
        mini: The model.
        entries: Photos with captions, among them those that `boxes` names.
        boxes: The marked photos.

    Returns:
        ``ratios`` by photo, their ``median``, the ratio of the photos' mean inside to their mean outside (``pooled``),
        and the same for two controls: each mask on the next photo's boxes (``other_boxes``), and the mask of the
        caption's first word (``other_word``).

    Raises:
        ValueError: A marked photo is not among the entries.
    """
    captions = {path.name: (path, caption) for path, caption in entries}
    marked = json.loads(boxes.read_text(encoding="utf-8"))
    missing = sorted(set(marked) - set(captions))
    if missing:
        raise ValueError(f"{missing[0]}, marked in {boxes.name}, is not among the photos; give their folder")
    regions = [region(parts, SIDE) for _, parts in marked.values()]
    means, other_boxes, other_word = [], [], []
    for k, (name, (word, _)) in enumerate(marked.items()):
        path, caption = captions[name]
        latent = mini.autoencoder.encode(read_square(path, SIDE))
        record = result_of(invert(mini.model, latent, mini.encode(caption), mini.encode(""), steps=STEPS))
        own, other = (
            original_branch(
                mini.model,
                mini.autoencoder,
                replace(record, positive=mini.encode(caption, chosen)),
                Constraint(mask="soft"),
            ).mask
            for chosen in (word, caption.split()[0])
        )
        means.append(inside_outside(own, regions[k]))
        other_boxes.append(inside_outside(own, regions[(k + 1) % len(regions)]))
        other_word.append(inside_outside(other, regions[k]))
    return {
        "ratios": {name: inside / outside for name, (inside, outside) in zip(marked, means, strict=True)},
        "median": float(np.median([inside / outside for inside, outside in means])),
        "pooled": ratio(means),
        "other_boxes": ratio(other_boxes),
        "other_word": ratio(other_word),
    }
