"""Views: one average tile whatever the geometry, and where an image begins in the marked frame."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed import views as module
from onrw_core.extractors.keyed.band import DIMENSIONS, TILE, band_basis
from onrw_core.extractors.keyed.views import Views, average_tile, tile_of, whitened
from onrw_core.imaging.geometry import Geometry
from onrw_core.imaging.metrics import luminance


def textured(height: int, width: int) -> torch.Tensor:
    """Grain with a periodic pattern, (1, 3, height, width)."""
    generator = torch.Generator().manual_seed(0)
    pattern = band_basis().float() @ torch.randn(DIMENSIONS, generator=generator)
    pattern = pattern.reshape(TILE, TILE).repeat(-(-height // TILE), -(-width // TILE))[:height, :width]
    grain = torch.randn(1, 3, height, width, generator=generator)
    return (0.5 + 0.02 * grain + 1.2 * pattern * 0.02 / pattern.std() / 1.2).clamp(0, 1)


IMAGE = textured(256, 320)


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a, b))


def test_a_crop_has_the_tile_of_the_whole():
    y = luminance(IMAGE)
    whole = tile_of(y, None)
    crop = tile_of(y[..., 37:230, 75:310], Geometry.shift(75, 37))
    assert alike(whole, crop) > 0.97
    assert alike(whole, tile_of(y[..., 37:230, 75:310], None)) < 0.5


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_has_the_tile_of_the_original(turns):
    y = luminance(IMAGE)
    geometry = Geometry.identity()
    for turn in range(turns):
        side = 320 if turn % 2 == 0 else 256
        quarter = torch.tensor([[0, -1, side], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
        geometry = geometry @ Geometry(quarter)
    assert alike(tile_of(torch.rot90(y, turns, (-2, -1)), geometry), tile_of(y, None)) > 0.999


@pytest.mark.parametrize(
    "geometry", [Geometry.identity(), Geometry.shift(200, -77), Geometry.rotation(30, (256, 320)), Geometry.scale(0.4)]
)
def test_placed_begins_in_the_first_tile_a_whole_number_of_tiles_away(geometry):
    placed = Views(IMAGE).placed(geometry)
    corners = torch.tensor([[0, 0], [320, 0], [0, 256], [320, 256]])
    low = placed.apply(corners).min(0).values
    assert ((0 <= low) & (low < TILE)).all()
    moved = (placed.apply(corners) - geometry.apply(corners)) / TILE
    assert torch.allclose(moved, moved.round()[:1].expand_as(moved), atol=1e-9)
    assert torch.equal(Views(IMAGE).placed(None).matrix, torch.eye(3, dtype=torch.float64))


def test_shifts_share_the_whitened_image_and_keep_their_place():
    views = Views(IMAGE)
    index = len(views.projections) - 1
    here = views.rectified(index, Geometry.identity(), 2048)
    there = views.rectified(index, Geometry.shift(5, 9), 2048)
    assert there.y is here.y and (there.x0, there.y0) == (5, 9)
    assert torch.allclose(views.tile(index, Geometry.identity(), 2048), tile_of(luminance(IMAGE), None), atol=1e-5)
    part = views.rectified(index, Geometry.identity(), 128)
    assert part.y.shape[-2:] == (128, 128) and (part.x0, part.y0) == (96, 64)
    assert alike(average_tile(part), average_tile(here)) > 0.9


def test_flat_areas_weigh_nothing():
    image = IMAGE.clone()
    image[..., :128, :160] = 0.3
    view = whitened(luminance(image), None)
    assert view.weight[..., 16:112, 16:144].sum() == 0 and (view.y[..., 16:112, 16:144] == 0).all()
    assert view.weight[..., 160:, 200:].min() == 1
    assert alike(average_tile(view), tile_of(luminance(IMAGE), None)) > 0.95


@pytest.mark.parametrize("turned", ["shift", "turn", "flip"])
def test_views_that_differ_in_a_shift_or_turn_are_shared_on_request(monkeypatch, turned):
    image = textured(256, 256)
    views, calls = Views(image), []
    whiten = module.whitened
    monkeypatch.setattr(module, "whitened", lambda *given: calls.append(given) or whiten(*given))
    start = views.placed(Geometry.rotation(7, (256, 256)))
    matrix = {
        "shift": [[1, 0, 12.3], [0, 1, 40], [0, 0, 1]],
        "turn": [[0, -1, 300], [1, 0, 5], [0, 0, 1]],
        "flip": [[-1, 0, 400.5], [0, 1, 0], [0, 0, 1]],
    }
    geometry = Geometry(torch.tensor(matrix[turned], dtype=torch.float64)) @ start
    fresh = views.tile(0, geometry, 512)
    views.rectified(0, start, 512, shared=True)
    count = len(calls)
    shared = views.tile(0, geometry, 512, shared=True)
    assert len(calls) == count and alike(fresh, shared) > 0.9
    assert torch.equal(views.tile(0, geometry, 512), fresh) and len(calls) == count + 1
    views.tile(0, Geometry.rotation(8, (256, 256)), 512, shared=True)
    assert len(calls) == count + 2
