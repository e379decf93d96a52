"""The search in the spectrum: the comb of an ideal lattice, and of marks that were rotated, scaled and stretched."""

import math

import pytest
import torch

from onrw_core.extractors.keyed.band import TILE
from onrw_core.extractors.keyed.comb_search import (
    ANGLES,
    ASPECTS,
    RADIUS_STEP,
    _coarse,
    _refined,
    candidates,
    levels,
    on_lines,
)
from onrw_core.extractors.keyed.public_layer import PILOT_FREQUENCIES
from onrw_core.imaging.geometry import Geometry

from .synthetic import SIZE, luma, marked, resized, rotated


@pytest.fixture(scope="module")
def picture():
    return marked()


def relation(candidate, truth):
    """How far two linear maps are from each other, up to quarter turns and flips."""
    product = candidate.linear @ torch.linalg.inv(truth)
    return float((product - product.round()).abs().max())


def lattice(linear: torch.Tensor) -> torch.Tensor:
    """A spectrum of 1024 x 1024 bins with a peak of 1.5 bins at each frequency of the pilot under A, on noise."""
    n = 1024
    spectrum = torch.rand(n, n, generator=torch.Generator().manual_seed(0))
    axis = torch.arange(n) - n / 2
    for k in torch.cat([PILOT_FREQUENCIES, -PILOT_FREQUENCIES]).to(linear):
        x, y = (k @ linear / TILE * n).tolist()
        spectrum += 8 * torch.outer((-((axis - y) ** 2) / 4.5).exp(), (-((axis - x) ** 2) / 4.5).exp())
    return spectrum


def turned(degrees: float, scale: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@pytest.mark.parametrize(("turn", "growth"), [(34, 0), (-88, -60), (114, 78)])
def test_the_log_polar_map_gives_rotation_and_scale(turn, growth):
    """On its grid, so that a cell more or less is an error."""
    truth = turned(turn * 180 / ANGLES, math.exp(growth * RADIUS_STEP))
    linear, _ = _coarse(lattice(truth), (1.0,), 1)
    relation = linear[0] @ torch.linalg.inv(truth)
    assert float((relation - relation.round()).abs().max()) < 0.003  # up to quarter turns


@pytest.mark.parametrize("direction", range(4))
@pytest.mark.parametrize("sign", [1, -1])
def test_each_direction_is_refined(direction, sign):
    """Rotation, scale, aspect and shear by .008, which displace the outer peaks by 1.4 bins."""
    change = torch.tensor([[[0, -1], [1, 0]], [[1, 0], [0, 1]], [[1, 0], [0, -1]], [[0, 1], [1, 0]]])[direction]
    truth = turned(10, 1.1)
    start = truth @ (torch.eye(2) + sign * 0.008 * change)
    found, _ = _refined(lattice(truth), start[None])
    assert float((found[0] @ torch.linalg.inv(truth) - torch.eye(2)).abs().max()) < 0.0015


@pytest.mark.parametrize(
    ("degrees", "scale", "level"), [(0, 1.0, 0), (17, 1.0, 0), (-40, 0.6, 0), (71, 1.2, 0), (8, 2.4, 1)]
)
def test_comb_gives_rotation_and_scale(picture, degrees, scale, level):
    turned = rotated(picture, degrees)
    received = resized(turned, round(SIZE * scale), round(SIZE * scale))
    best = candidates(levels(luma(received))[level])[0]
    truth = (Geometry.rotation(degrees, (SIZE, SIZE)) @ Geometry.scale(SIZE / received.shape[-1])).matrix[:2, :2]
    assert best.score > 8
    assert relation(best, truth) < 0.006


def test_aspect_templates_give_aspect(picture):
    received = rotated(resized(picture, SIZE, 476), 20)
    truth = (Geometry.scale(SIZE / 476, 1) @ Geometry.rotation(20, (SIZE, 476))).matrix[:2, :2]
    best = candidates(levels(luma(received))[0], ASPECTS[1:])[0]
    assert relation(best, truth) < 0.008


def test_lines_hold_small_crops_that_were_only_turned_or_only_resized(picture):
    crop = picture[..., 70:280, 100:310]
    for received, truth in (
        (rotated(crop, 23), Geometry.rotation(23, (210, 210))),
        (resized(crop, 126, 126), Geometry.scale(210 / 126)),
    ):
        found = on_lines(levels(luma(received))[0])
        assert len(found) <= 8
        assert min(relation(c, truth.matrix[:2, :2]) for c in found) < 0.012


def test_unmarked_picture_has_no_strong_comb():
    scores = [c.score for level in levels(luma(marked(amplitude=0.0))) for c in candidates(level)]
    assert max(scores) < 7
