"""Alignment against the waves themselves: orientations, shifts, refinement, roughness."""

import math

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.alignment import ORIENTATIONS, align, oriented, refine, roughness
from onrw_core.extractors.keyed.band import DIMENSIONS, FREQUENCIES, TILE
from onrw_core.extractors.keyed.tile_average import shifted


def patterns(count: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=1)


def values(tiles: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The periodic function that coefficients (N, 364) stand for, at points (P, 2) of (x, y): (N, P)."""
    phase = points @ FREQUENCIES.double().T * (2 * math.pi / TILE)
    return tiles @ torch.cat([phase.cos(), phase.sin()], 1).T


def points(count: int = 50) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * TILE


def test_orientations_are_the_eight_of_the_square():
    matrices = {tuple(o.flatten().tolist()) for o in ORIENTATIONS}
    assert len(matrices) == 8
    assert torch.equal(ORIENTATIONS[0], torch.eye(2, dtype=torch.long))
    for o in ORIENTATIONS:
        assert torch.equal(o @ o.T, torch.eye(2, dtype=torch.long))


@pytest.mark.parametrize("index", range(8))
def test_oriented_takes_received_to_marked_directions(index):
    tiles = patterns(2)
    turned = oriented(tiles)[:, index]
    received = points() @ ORIENTATIONS[index].double()  # rows: the inverse is the transpose
    assert torch.allclose(values(turned, points()), values(tiles, received), atol=1e-10)


@pytest.mark.parametrize("index", range(8))
def test_align_and_refine_find_pattern_orientation_and_shift(index):
    sync = patterns(3, seed=1).float()
    # What is received is the pattern moved and turned by the inverse of what the reader has to do.
    x, y, pattern = 13.37, 58.21, index % 3
    inverse = next(i for i, o in enumerate(ORIENTATIONS) if torch.equal(o @ ORIENTATIONS[index], ORIENTATIONS[0]))
    received = oriented(shifted(sync[pattern : pattern + 1], -x, -y))[:, inverse]
    noise = patterns(1, seed=2).float()
    found = align(3 * F.normalize(received, dim=1) + noise, sync)
    best = int(found.cosine[0].argmax())
    assert best == pattern and int(found.orientation[0, best]) == index
    step = TILE / 48
    for value, true in ((found.x[0, best], x), (found.y[0, best], y)):
        assert abs((value.item() - true + TILE / 2) % TILE - TILE / 2) <= step
    turned = oriented(3 * F.normalize(received, dim=1) + noise)[:, index]
    fine = refine(turned, sync[best : best + 1], found.x[:, best], found.y[:, best])
    assert (fine[0].item() - x + 32) % 64 - 32 == pytest.approx(0, abs=0.25)
    assert (fine[1].item() - y + 32) % 64 - 32 == pytest.approx(0, abs=0.25)
    assert fine[2].item() == pytest.approx(3 / 10**0.5, abs=0.03)
    assert fine[2].item() >= found.cosine[0, best].item() - 1e-5


def test_refine_ends_at_a_maximum_of_the_cosine():
    """Of noisy tiles, whose maximum is not where the pattern lies."""
    sync = patterns(20, seed=7).float()
    gain = FREQUENCIES.float().norm(dim=1).repeat(2)
    tiles = (sync + patterns(20, seed=8).float()) * gain / 8
    x, y, cosine = refine(tiles, sync, torch.zeros(20), torch.zeros(20))
    for dx, dy in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        beside = F.cosine_similarity(shifted(tiles, x + dx, y + dy), sync, dim=1)
        assert (beside < cosine).all()


def test_align_reports_the_cosine_at_its_grid_point():
    tiles, sync = patterns(5, seed=3).float(), patterns(2, seed=4).float()
    found = align(tiles, sync)
    for n in range(5):
        for s in range(2):
            turned = oriented(tiles[n : n + 1])[:, found.orientation[n, s]]
            moved = shifted(turned, found.x[n, s], found.y[n, s])
            assert float(moved @ sync[s]) == pytest.approx(found.cosine[n, s].item(), abs=1e-5)
    upright = align(tiles, sync, torch.tensor([0, 4]))
    assert set(upright.orientation.unique().tolist()) <= {0, 4}
    assert (upright.cosine <= found.cosine + 1e-6).all()


def test_refine_climbs_from_a_valley_without_leaving_finite_numbers():
    sync = patterns(40, seed=5).float()
    start = torch.linspace(-2, 2, 40)
    x, y, cosine = refine(sync, sync, start, start.flip(0))
    assert torch.stack([x, y, cosine]).isfinite().all()
    near = start.abs() < 0.9
    near &= start.flip(0).abs() < 0.9
    assert near.any() and (cosine[near] > 0.99).all()


def test_roughness_is_the_second_moment_of_the_spectrum():
    k = torch.tensor([3.0, 5.0]) * 2 * math.pi / TILE
    index = FREQUENCIES.tolist().index([3, 5])
    wave = torch.zeros(1, DIMENSIONS)
    wave[0, index], wave[0, 182 + index] = 0.6, -2.0
    along, area = roughness(wave)[0].tolist()
    assert along == pytest.approx(float(k.sum()), rel=1e-6) and area == pytest.approx(0, abs=1e-6)
    both = torch.zeros(1, DIMENSIONS)
    both[0, index], both[0, FREQUENCIES.tolist().index([-3, 5])] = 1.0, 1.0
    along, area = roughness(both)[0].tolist()
    assert along == pytest.approx(float(k.sum()), rel=1e-6)
    assert area == pytest.approx(float(k.prod()), rel=1e-6)
    assert torch.allclose(roughness(both * 7), roughness(both))
    assert roughness(torch.zeros(1, DIMENSIONS)).isfinite().all()
