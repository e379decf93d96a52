"""Blind search for rotation, scale and aspect: the pilot's comb in the spectrum.

The pilot repeats every 64 pixels, so it has energy at its frequencies k/64 only. In an image whose coordinates p lie at
q = A p + b in the marked frame, these appear at f = A^T k / 64. So

1. the spectrum's power is divided by its local mean, which makes the spectrum of a photo a nearly white map S(f) and
   that of the watermark a lattice of peaks;
2. in log-polar coordinates rotation and scale are shifts: one correlation by FFT sums S over the lattice for all of
   them (a template holds one point of equal weight per lattice frequency, so the sum is the log-likelihood of weak
   peaks); aspect changes have templates of their own;
3. the best candidates are refined in all four numbers of A on the spectrum itself;
4. in small crops the comb is too weak to be found among all rotations and scales together, but not among rotations
   alone or scales alone: images that were only rotated, or only resized, are searched for along those two lines.

The search does not use phases, so the candidates are independent of the key, and of the pilot's pattern; only the
candidates that are read afterwards count in the statistics.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .band import TILE
from .public_layer import PILOT_FREQUENCIES
from .spectral_flattening import flatten_spectrum
from .whitening import flat_mask, whiten

__all__ = ["Candidate", "Level", "candidates", "levels", "on_lines"]

MAX_SIDE = 1024  # of the image whose spectrum is searched, pixels: the size of the transform
# The following numbers were chosen, not tuned; a comment gives the reason where there is one.
COARSE = 2.5  # factor by which the second level is smaller; it finds watermarks that were enlarged more
COARSE_SIDE = 96  # smallest shorter side of the second level, pixels: 1.5 tiles
# Steps of the log-polar map: one bin of the spectrum at the band's edge, 174 bins from its middle at the original scale
# (10.9 cycles per tile of 64 pixels, 1024 bins per cycle per pixel): pi / 512 x 174 = 1.07 and .006 x 174 = 1.04 bins.
ANGLES = 512  # over 180 degrees
RADIUS_STEP = 0.006  # of the logarithm
MAX_RADIUS = 0.5  # cycles per pixel
RADII = 560  # down to .5 exp(-.006 x 560) = .017 cycles per pixel: the band of watermarks enlarged 1.8 times
# Padded for the template, so that the correlation does not wrap around: the template spans log(10.9 / 2) / .006 = 283
# radii. A multiple of `BLOCK`.
PADDED_RADII = 864
REFINED = 32  # candidates per level that are refined, more than the 24 of one aspect; of these at most 8 are read
BLOCK = 8  # cells of the log-polar map (2.8 degrees, 5 %) of which one candidate is kept
NEIGHBOURHOOD = 21  # bins over which the power is averaged: more than the 16 between two points of the lattice
CLIP = 9.0  # of the flattened power, which in noise is exponential: it exceeds this in exp(-9) = .01 % of the bins
TAPER = 0.1  # share of a side, tapered by a cosine at each end; costs an eighth of the energy along each axis
MIN_FREQUENCIES = 16  # lattice frequencies inside the spectrum: half of the 32
# A quarter turn maps the lattice to itself, so an aspect and its inverse have the same comb: this is 3/4 to 4/3.
ASPECTS = tuple(0.75 ** (i / 14) for i in range(15))
TURN_STEP = math.radians(0.5)  # step of the rotations: a few pixels at the edge of a small crop, which is refined
SIZE_STEP, LARGEST = 0.01, 4.0  # step of log scale: 1 pixel at 100 pixels from the centre; scales 1/4 to 4


class Level(NamedTuple):
    """A flattened spectrum.

    Attributes:
        spectrum: S(f), (N, N), zero frequency in the middle.
        shrink: (x, y), pixels of the image per pixel of this level.
    """

    spectrum: Tensor
    shrink: tuple[float, float]


class Candidate(NamedTuple):
    """A linear map A from received to marked directions (up to quarter turns and flips), and its comb score."""

    linear: Tensor
    score: float


def levels(y: Tensor) -> list[Level]:
    """The flattened spectra of a projection of the image (1, 1, H, W), fine and coarse."""
    side = max(y.shape[-2:])
    fine = _shrunk(y, side / MAX_SIDE) if side > MAX_SIDE else y
    found = [fine]
    if min(fine.shape[-2:]) >= COARSE_SIDE * COARSE:
        found.append(_shrunk(fine, COARSE))
    return [Level(_flattened(level), (y.shape[-1] / level.shape[-1], y.shape[-2] / level.shape[-2])) for level in found]


def _shrunk(y: Tensor, factor: float) -> Tensor:
    size = [max(1, round(side / factor)) for side in y.shape[-2:]]
    return F.interpolate(y, size=size, mode="bicubic", antialias=True, align_corners=False)


def _flattened(y: Tensor) -> Tensor:
    height, width = y.shape[-2:]
    n = 512 if max(height, width) <= 320 else 1024
    mask = flat_mask(y)
    w = flatten_spectrum(whiten(y, mask))[0, 0]
    w = w if mask is None else w * mask[0, 0]
    half = torch.fft.rfft2(w * _taper(height)[:, None] * _taper(width), s=(n, n)).abs().square()
    power = torch.fft.fftshift(_full(half, n))[None, None]
    mean = power
    for _ in range(2):  # rows, then, transposed, columns
        mean = F.pad(mean, (NEIGHBOURHOOD // 2, NEIGHBOURHOOD // 2, 0, 0), mode="circular")
        mean = F.avg_pool2d(mean, (1, NEIGHBOURHOOD), stride=1).transpose(-1, -2).contiguous()
    return (power / (mean + 1e-12)).clamp(max=CLIP)[0, 0]


def _taper(length: int) -> Tensor:
    """A window along a line, tapered by a cosine at each end."""
    edge = (torch.arange(length) + 0.5) / (TAPER * length)
    return 0.5 - 0.5 * torch.minimum(edge, edge.flip(0)).clamp(max=1).mul(math.pi).cos()


def _full(half: Tensor, n: int) -> Tensor:
    """The whole spectrum from the half that `rfft2` returns."""
    mirrored = half[:, 1 : n // 2].flip(1)
    mirrored = torch.cat([mirrored[:1], mirrored[1:].flip(0)])
    return torch.cat([half, mirrored], 1)


def _log_radii() -> Tensor:
    return math.log(MAX_RADIUS) - RADIUS_STEP * torch.arange(RADII - 1, -1, -1)


@lru_cache(maxsize=1)
def _polar_grid() -> Tensor:
    radius = _log_radii().exp() * 2
    angle = torch.arange(ANGLES) * (math.pi / ANGLES)
    return torch.stack([radius * angle.cos()[:, None], radius * angle.sin()[:, None]], -1)[None]


def _sample(spectrum: Tensor, grid: Tensor) -> Tensor:
    """Interpolate S at frequencies in half cycles per pixel (..., 2), zero frequency in the middle of bin N/2."""
    n = spectrum.shape[-1]
    return F.grid_sample(spectrum[None, None], grid + 1.0 / n, mode="bilinear", align_corners=False)[0, 0]


@lru_cache(maxsize=len(ASPECTS))
def _template(aspect: float) -> tuple[Tensor, Tensor]:
    """Conjugate spectrum of the log-polar lattice, and the square root of its points inside the map per shift."""
    stretch = torch.tensor([math.sqrt(aspect), 1 / math.sqrt(aspect)], dtype=torch.float64)
    k = PILOT_FREQUENCIES.double() * stretch
    row = torch.atan2(k[:, 1], k[:, 0]) % math.pi * (ANGLES / math.pi)
    # At scale 1 the largest radius of the lattice is at the last column of the map.
    column = (k.norm(dim=1) / TILE).log().sub(math.log(MAX_RADIUS)) / RADIUS_STEP + RADII - 1
    template = torch.zeros(ANGLES, PADDED_RADII, dtype=torch.float64)
    for i in (0, 1):
        for j in (0, 1):
            weight = (1 - (row.floor() + i - row).abs()) * (1 - (column.floor() + j - column).abs())
            template.index_put_(((row.floor().long() + i) % ANGLES, column.floor().long() + j), weight, accumulate=True)
    spectrum = torch.fft.rfft2(template.float()).conj()
    inside = torch.zeros(ANGLES, PADDED_RADII)
    inside[:, :RADII] = 1
    count = torch.fft.irfft2(torch.fft.rfft2(inside) * spectrum, s=(ANGLES, PADDED_RADII))[:1]
    return spectrum, torch.where(count > MIN_FREQUENCIES, count.clamp(min=1).rsqrt(), torch.zeros(()))


def _coarse(spectrum: Tensor, aspects: tuple[float, ...], top: int) -> tuple[Tensor, Tensor]:
    """The maps A, (M, 2, 2) in pixels of the level, and scores (M,) with the largest log-polar correlation."""
    polar = _sample(spectrum, _polar_grid())
    polar = polar - polar.mean(0)
    polar = F.pad(polar / (polar.std(0) + 1e-6), (0, PADDED_RADII - RADII))
    transformed = torch.fft.rfft2(polar)
    linears, scores = [], []
    for aspect in aspects:
        template, normaliser = _template(aspect)
        score = torch.fft.irfft2(transformed * template, s=(ANGLES, PADDED_RADII)) * normaliser
        # One candidate per block of cells, so that a peak gives one candidate.
        blocks = score.reshape(ANGLES // BLOCK, BLOCK, PADDED_RADII // BLOCK, BLOCK).permute(0, 2, 1, 3).flatten(2)
        value, inner = blocks.max(2)
        best, outer = value.flatten().topk(top)
        inner, columns = inner.flatten()[outer], PADDED_RADII // BLOCK
        index = torch.div(outer, columns, rounding_mode="floor") * BLOCK + torch.div(
            inner, BLOCK, rounding_mode="floor"
        )
        grow = outer % columns * BLOCK + inner % BLOCK
        # Shifts are cyclic: a radius shift beyond the middle is a negative shift.
        turn = index * (math.pi / ANGLES)
        grow = torch.where(grow > PADDED_RADII // 2, grow - PADDED_RADII, grow) * RADIUS_STEP
        cos, sin, size = turn.cos(), turn.sin(), grow.exp()
        transposed = torch.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2) * size[:, None, None]
        stretch = torch.tensor([math.sqrt(aspect), 1 / math.sqrt(aspect)])
        linears.append((transposed * stretch).transpose(1, 2))
        scores.append(best)
    return torch.cat(linears), torch.cat(scores)


def comb_score(spectrum: Tensor, linear: Tensor) -> Tensor:
    """Sum of S over the lattice of each A (M, 2, 2), in standard deviations of a random lattice: (M,)."""
    deviation, mean = torch.std_mean(spectrum[::4, ::4])
    f = torch.einsum("fj,mji->mfi", PILOT_FREQUENCIES.to(linear), linear) * (2 / TILE)
    values = _sample(spectrum, f[None].flatten(1, 2)[:, None])[0].reshape(f.shape[:2])
    inside = f.square().sum(-1) < (2 * MAX_RADIUS) ** 2
    values = (values - mean) / deviation
    count = inside.sum(1)
    return (values * inside).sum(1) / count.clamp(min=1).sqrt() * (count > MIN_FREQUENCIES)


DIRECTIONS = torch.tensor(
    [
        [[0, -1], [1, 0]],  # rotation
        [[1, 0], [0, 1]],  # scale
        [[1, 0], [0, -1]],  # aspect
        [[0, 1], [1, 0]],  # shear
    ]
)


def _refined(spectrum: Tensor, linear: Tensor, rounds: int = 5) -> tuple[Tensor, Tensor]:
    """The nearby maximum of the comb score for each A: pattern search with decreasing steps in four directions."""
    steps = torch.tensor([0.004, 0.004, 0.006, 0.004])
    # All combinations of -1, 0, 1 in the four directions.
    trial = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    score = comb_score(spectrum, linear)
    for _ in range(rounds):
        change = torch.einsum("td,dij->tij", trial * steps, DIRECTIONS.to(linear))
        # A (1 + change): small changes of the received image
        moved = linear[:, None] + change[None] @ linear[:, None]
        scores = comb_score(spectrum, moved.flatten(0, 1)).reshape(len(linear), -1)
        score, best = scores.max(1)
        linear = moved[torch.arange(len(linear)), best]
        steps = torch.where(best.eq(40).all(), steps / 2, steps * 0.7)
    return linear, score


def candidates(level: Level, aspects: tuple[float, ...] = (1.0,), top: int = 24, keep: int = 8) -> list[Candidate]:
    """The geometries of one level with the highest comb scores, best first.

    Args:
        level: From `levels`.
        aspects: Changes of width over height to try, of `ASPECTS`; each includes its inverse.
        top: Candidates per aspect, of which the best are refined.
        keep: Candidates returned.
    """
    linear, score = _coarse(level.spectrum, aspects, top)
    linear = linear[score.topk(min(REFINED, len(score))).indices]
    linear, score = _refined(level.spectrum, linear)
    return _listed(level, linear, score, keep)


def on_lines(level: Level, keep: int = 4) -> list[Candidate]:
    """The best rotations at scale 1 and the best scales without rotation, by comb score: `keep` of each."""
    unshrunk = torch.diag(torch.tensor(level.shrink))
    turn = torch.arange(0, math.pi / 2, TURN_STEP)  # all others follow by quarter turns
    turns = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).reshape(-1, 2, 2)
    size = torch.arange(-math.log(LARGEST), math.log(LARGEST), SIZE_STEP).exp()
    found = []
    for linear, closed in ((turns, True), (size[:, None, None] * torch.eye(2), False)):
        linear = linear @ unshrunk
        score = comb_score(level.spectrum, linear)
        before, after = score.roll(1), score.roll(-1)
        if not closed:
            before[0] = after[-1] = -torch.inf
        peaks = (score >= before) & (score >= after)
        found += _listed(level, linear[peaks], score[peaks], keep)
    return found


def _listed(level: Level, linear: Tensor, score: Tensor, keep: int) -> list[Candidate]:
    """The best `keep` distinct maps, converted from pixels of the level to pixels of the image."""
    found: list[Candidate] = []
    unshrink = torch.diag(torch.tensor([1 / level.shrink[0], 1 / level.shrink[1]], dtype=torch.float64))
    for i in score.argsort(descending=True).tolist():
        native = linear[i].double() @ unshrink
        if all(_distinct(native, other.linear) for other in found):
            found.append(Candidate(native, float(score[i])))
        if len(found) == keep:
            break
    return found


def _distinct(a: Tensor, b: Tensor) -> bool:
    """Whether two lattices differ by more than quarter turns, flips and a tolerance."""
    relation = a @ torch.linalg.inv(b)
    return (
        float((relation - relation.round()).abs().max()) > 0.005 or abs(float(torch.linalg.det(relation.round()))) != 1
    )
