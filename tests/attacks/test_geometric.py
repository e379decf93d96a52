"""Geometric attacks: sizes, directions, and the homography that each reports."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.attacks import attack, parse
from onrw_core.imaging.geometry import Geometry, resample


@pytest.mark.parametrize(
    "text",
    ["crop=.3", "crop-random=.3", "rotation=25", "rotation=-90", "rotation=180", "rotation=270", "rotation=-333"]
    + ["resize=.3", "resize=1.7", "aspect=.7", "aspect=1.4", "flip", "perspective=.15", "border=.2"]
    + ["screenshot=.8", "screenshot-border=.8", "crop=.6+rotation=90+resize=.5", "flip+crop-random=.5+aspect=.8"],
)
def test_geometry_is_exact(photo, text, generator):
    """Drawing the input where the geometry says gives the received picture, and half a pixel off does not."""
    photo = photo.mean(1, keepdim=True).expand_as(photo)  # grey: JPEG's coarse colours would blur the comparison
    result = parse(text)(photo, generator(5))
    size = tuple(result.images.shape[-2:])
    inside = resample(torch.ones_like(photo), result.geometry, size) > 0.999
    inside = F.avg_pool2d(inside.float(), 9, 1, 4, count_include_pad=False) > 0.999  # edges may differ
    assert inside.float().mean() > 0.1

    def error(x, y):
        drawn = resample(photo, result.geometry @ Geometry.shift(x, y), size, "bicubic")
        return (result.images - drawn)[inside].square().mean()

    assert all(error(0, 0) < error(x, y) / 2 for x, y in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)))


def test_sizes_follow_area_and_are_never_restored(photo):
    assert attack("crop", 0.25)(photo).images.shape[-2:] == (48, 60)
    assert attack("resize", 0.25)(photo).images.shape[-2:] == (48, 60)
    assert attack("rotation", 25)(photo).images.shape == photo.shape
    assert attack("rotation", 90)(photo).images.shape[-2:] == (120, 96)
    assert attack("aspect", 0.5)(photo).images.shape[-2:] == (96, 60)
    assert attack("aspect", 2.0)(photo).images.shape[-2:] == (48, 120)


def test_rotation_is_counter_clockwise_and_quarter_turns_are_exact(photo):
    for turns in (-4, -1, 0, 1, 2, 3):
        assert torch.equal(attack("rotation", 90 * turns)(photo).images, torch.rot90(photo, turns, (-2, -1)))
    near = attack("rotation", 89.999)(photo[..., :96, :96]).images
    assert (near - torch.rot90(photo[..., :96, :96], 1, (-2, -1)))[..., 2:-2, 2:-2].abs().max() < 0.01
    corners = attack("rotation", 45)(photo).images[..., 0, 0]
    assert torch.equal(corners, torch.zeros_like(corners))


def test_crop_is_central_and_crop_random_moves(photo, generator):
    assert torch.equal(attack("crop", 0.25)(photo, generator(1)).images, photo[..., 24:72, 30:90])
    places = {tuple(attack("crop-random", 0.25)(photo, generator(i)).geometry.matrix[:2, 2].tolist()) for i in range(5)}
    assert len(places) > 1


def test_perspective_moves_each_corner_inward_by_up_to_the_strength(photo, generator):
    corners = torch.tensor([[0, 0], [120, 0], [120, 96], [0, 96]], dtype=torch.float64)
    inward = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    moves = []
    for seed in range(20):
        back = attack("perspective", 0.25)(photo, generator(seed)).geometry.inverse()
        moves.append((back.apply(corners) - corners) * inward / torch.tensor([120, 96]))
    assert min(m.min() for m in moves) >= -1e-9 and max(m.max() for m in moves) <= 0.25
    assert all(
        torch.stack(moves)[:, corner].std(0).min() > 0.04 for corner in range(4)
    )  # uniform: .25 / sqrt(12) = .07
