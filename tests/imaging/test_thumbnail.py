import pytest
import torch
import torch.nn.functional as F

from onrw_core.attacks import parse
from onrw_core.extractors.keyed.band import TILE
from onrw_core.extractors.keyed.secret_layer import PERIOD as PATTERN_PERIOD
from onrw_core.imaging.geometry import Geometry
from onrw_core.imaging.thumbnail import CELL, LIKE, PERIOD, Thumbnail, likeness, thumbnail

PLACE = Geometry.shift(30 * TILE, 5 * TILE)  # 256 pixels from there cross the edge of the pattern


def image_like(seed: int, size=(192, 256)):
    """A smooth image, as photos are at the size of thumbnails."""
    coarse = torch.rand(1, 3, 10, 12, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def seen(image, attack):
    attacked = parse(attack)(image, torch.Generator().manual_seed(3))
    return thumbnail(attacked.images[0], PLACE @ (attacked.geometry or Geometry.identity()))


def test_period_is_the_patterns():
    assert PERIOD * CELL == PATTERN_PERIOD * TILE


@pytest.mark.parametrize(
    "attack",
    ["rotation=25", "rotation=90", "crop=.6", "resize=.3", "brightness=2", "jpeg=50", "noise=.05", "aspect=.8", "flip"],
)
def test_an_image_looks_like_itself_and_not_like_others(attack):
    registered = thumbnail(image_like(1)[0], PLACE)
    assert likeness(registered, seen(image_like(1), attack)) > 0.9
    for other in range(2, 6):
        assert likeness(registered, seen(image_like(other), attack)) < LIKE


def test_a_flat_image_is_another_image_and_a_flat_original_tells_nothing():
    registered, flat = thumbnail(image_like(1)[0], PLACE), thumbnail(torch.full((3, 192, 256), 0.5), PLACE)
    assert likeness(registered, flat) == pytest.approx(0, abs=1e-3)
    assert likeness(flat, registered) is None


def test_few_cells_tell_nothing():
    registered = thumbnail(image_like(1)[0], PLACE)
    corner = thumbnail(image_like(1)[0, :, :96, :96], PLACE)
    assert likeness(registered, corner) is None
    elsewhere = thumbnail(image_like(1)[0], Geometry.shift(10 * TILE, 20 * TILE))
    assert likeness(registered, elsewhere) is None


def test_values_are_mean_luminances_at_their_places():
    image = torch.zeros(3, 128, 128)
    image[:, 32:64, 96:] = 1
    found = thumbnail(image, Geometry.shift(31 * TILE, 2 * TILE))
    assert (found.row, found.column) == (4, 62) and found.values.shape == (4, 4)
    assert found.values[1, 3] > 0.9 and found.values.sum() < 1.3
    assert found.on_torus()[5, 1] == found.values[1, 3]
    partly = thumbnail(image, Geometry.shift(16, 0))
    assert partly.values.isfinite().tolist() == [[False, True, True, True, False]] * 4


def test_text():
    found = thumbnail(image_like(1)[0], PLACE @ Geometry.rotation(20, (192, 256)))
    again = Thumbnail.parse(str(found))
    assert (again.row, again.column) == (found.row, found.column)
    torch.testing.assert_close(again.values, found.values, atol=0.002, rtol=0, equal_nan=True)
    assert found.values.isnan().any()


@pytest.mark.parametrize(
    "text", ["", "1,2,3,4", "0,0,1,2:AA==", "0,0,0,0:AA==", "64,0,1,1:AA==", "0,0,65,1:AA==", "0,0,1,1:=AA="]
)
def test_other_text_is_no_thumbnail(text):
    assert Thumbnail.parse(text) is None
