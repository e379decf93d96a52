"""Refinement of a geometry by single tiles: which tiles take part, and small displacements found again."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.band import DIMENSIONS, TILE
from onrw_core.extractors.keyed.rectify import Rectified
from onrw_core.extractors.keyed.refinement import covered_tiles, refined_geometry
from onrw_core.extractors.keyed.secret_layer import SecretLayer
from onrw_core.extractors.keyed.tile_average import coefficients, shifted, tile_grid
from onrw_core.extractors.keyed.whitening import whiten
from onrw_core.imaging.geometry import Geometry, resample

from .synthetic import KEY, SIZE, luma, marked


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def centres(rows: int, columns: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * TILE


def covered(w: torch.Tensor, weight: torch.Tensor | None = None, x0: float = 0, y0: float = 0):
    return covered_tiles(Rectified(w, weight, x0, y0))


def test_tiles_with_their_centres():
    w = noise(1, 1, 130, 200)
    found = covered(w)
    # Two rows and three columns of whole tiles; of the last column 8 of 64 pixels, of the last row 2: too little.
    assert torch.equal(found.centres, centres(2, 3))
    assert torch.allclose(found.tiles, coefficients(tile_grid(w)[0, :2, :3].flatten(0, 1)))
    assert len(covered(noise(1, 1, 64, 64 + 20)).centres) == 2  # 20 of 64 pixels are enough


def test_tiles_lie_on_the_grid_of_the_frame():
    found = covered(noise(1, 1, 128, 128), x0=60.5, y0=64)
    assert found.places.tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]  # four pixels of the first column: too little
    assert torch.equal(found.centres[0], torch.tensor([96.0, 96.0]))


def test_weights_say_what_is_covered():
    w, weight = noise(1, 1, 128, 128), torch.ones(1, 1, 128, 128)
    weight[..., :64, :50] = 0
    assert torch.equal(covered(w * weight, weight).centres, centres(2, 2)[1:])
    weight[...] = 0
    assert len(covered(w * weight, weight).tiles) == 0
    weight[..., :10, :10] = 1  # less than a quarter of any tile: the best there is
    assert len(covered(w * weight, weight).tiles) == 1


AFFINE = torch.tensor([[0.004, -0.006, 1.1], [0.007, -0.003, -0.8], [0, 0, 1]], dtype=torch.float64)
TILTED = torch.tensor([[0.002, 0, 0.5], [0, -0.002, -0.4], [6e-6, -8e-6, 1]], dtype=torch.float64)


@pytest.mark.parametrize(("change", "perspective"), [(AFFINE, False), (AFFINE, True), (TILTED, True)])
def test_displacements_are_found(change, perspective):
    places = centres(6, 8)
    middle = places.mean(0).double()
    matrix = change.clone()
    matrix[:2, :2] += torch.eye(2, dtype=torch.float64)
    centre = Geometry.shift(*middle.tolist())
    true = centre @ Geometry(matrix) @ centre.inverse()
    # Tiles at p show what belongs at true(p): their content is displaced by p - true(p).
    moved = places - true.apply(places).float()
    sync = F.normalize(noise(DIMENSIONS, seed=1), dim=0)
    tiles = shifted(sync.expand(len(places), -1), moved[:, 0], moved[:, 1]) + 0.02 * noise(len(places), DIMENSIONS)
    found, gain = refined_geometry(tiles, places, sync, perspective)
    assert (found.apply(places) - true.apply(places)).norm(dim=1).max() < 0.3
    assert gain > 1.05


def test_noise_is_no_reason_to_move():
    places = centres(5, 5)
    sync = F.normalize(noise(DIMENSIONS, seed=1), dim=0)
    gains = [refined_geometry(noise(25, DIMENSIONS, seed=seed), places, sync)[1] for seed in range(2, 22)]
    assert sum(gain == 1 for gain in gains) >= 14


def test_a_right_geometry_stays():
    places = centres(4, 4)
    sync = F.normalize(noise(DIMENSIONS, seed=1), dim=0)
    found, gain = refined_geometry(sync.expand(16, -1).clone(), places, sync)
    assert gain == 1
    assert (found.apply(places) - places).norm(dim=1).max() < 1e-3


def test_refinement_corrects_affine_and_perspective():
    error = Geometry(torch.tensor([[1.004, 0.003, 1], [-0.003, 0.998, -2], [1e-5, -1e-5, 1]], dtype=torch.float64))
    w = whiten(luma(resample(marked(), error, (SIZE, SIZE), mode="bicubic")))
    covered = covered_tiles(Rectified(w, None, 31 * 64.0, 7 * 64.0))
    layer = SecretLayer.from_key(KEY)
    tiles = layer.each_without_phases(covered.tiles, covered.places)
    centres = covered.centres - torch.tensor([31 * 64, 7 * 64])
    found, gain = refined_geometry(tiles, centres, layer.sync_for(48).float(), perspective=True)
    corners = torch.tensor([[64.0, 64], [448, 64], [64, 448], [448, 448]])
    before = (error.apply(corners) - corners).norm(dim=1).max()
    after = (found.apply(corners) - error.apply(corners)).norm(dim=1).max()
    assert before > 4 and after < 0.7 and gain > 1.05
