"""Segmentation of objects on plain grounds, without annotation.

Where a photo's border has one colour, what differs from that colour is the object. The colour is the border's median;
distances from it are cut where Otsu's criterion (1979) separates the two sides best, then specks and holes are removed.
Photos whose border is not plain, or whose object is implausibly small, large, scattered or cut off, are left
out: a wrong mask would be a wrong target of the training.
"""

from __future__ import annotations

import numpy as np

__all__ = ["object_mask"]

BORDER = 0.04  # of the side, the ring that must be plain
PLAIN_SPREAD = 0.25  # most that three quarters of the ring may lie from its median, in [0, 1] colours
LEAST_DISTANCE = 0.12  # of the cut from the border's colour
AREAS = (0.08, 0.75)  # plausible shares of the image
MOST_BORDER = 0.35  # of the ring may belong to the object
LEAST_SOLIDITY = 0.45  # of the object's area in the rectangle around it
LEAST_CONTRAST = 2.5  # mean distance of the object over that of the ground
BINS = 64
OPENING = 2  # pixels of grid, of the majority filter


def object_mask(pixels: np.ndarray) -> np.ndarray | None:
    """The object of a square photo on a plain ground.

    Args:
        pixels: uint8 (S,S,3), small (64 px or so).

    Returns:
        bool (S,S), True on the object; None where the ground is not plain or the object not plausible.
    """
    colours = pixels.astype(np.float32) / 255
    side = len(colours)
    ring = np.ones((side, side), bool)
    width = max(1, round(BORDER * side))
    ring[width:-width, width:-width] = False
    ground = np.median(colours[ring], axis=0)
    distance = np.linalg.norm(colours - ground, axis=-1)
    if np.quantile(distance[ring], 0.75) > PLAIN_SPREAD:
        return None
    mask = filled(majority(distance > max(LEAST_DISTANCE, otsu(distance))))
    if not AREAS[0] <= mask.mean() <= AREAS[1] or mask[ring].mean() > MOST_BORDER:
        return None
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() < LEAST_SOLIDITY:
        return None
    if distance[mask].mean() < LEAST_CONTRAST * distance[~mask].mean():
        return None
    return mask


def otsu(values: np.ndarray) -> float:
    """The threshold with the least variance within the two classes (Otsu)."""
    counts, edges = np.histogram(values, BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * middles).cumsum()
    above = np.maximum(total - below, 1)
    between = below * above * (sums / np.maximum(below, 1) - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + between[:-1].argmax()])


def majority(mask: np.ndarray) -> np.ndarray:
    """Each pixel as most of its neighbourhood: specks vanish, holes close."""
    width = 2 * OPENING + 1
    padded = np.pad(mask, OPENING, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width, width))
    return windows.mean((2, 3)) > 0.5


def filled(mask: np.ndarray) -> np.ndarray:
    """With the holes that are cut off from the border."""
    outside = ~np.pad(mask, 1)
    reached = np.zeros_like(outside)
    reached[[0, -1]] = reached[:, [0, -1]] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= outside
        if (grown == reached).all():
            return ~reached[1:-1, 1:-1]
        reached = grown
