"""Registration: the motion of a scene, whatever moves in it, and none between scenes."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.registration import Shift, aligned, overlap, translated, translation


def scene(seed: int, height: int = 160, width: int = 240) -> torch.Tensor:
    """Soft texture, (1, 3, height, width)."""
    noise = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    soft = gaussian_blur(noise, 2.0)
    return (0.5 + 0.15 * soft / soft.std()).clamp(0, 1).expand(-1, 3, -1, -1)


WHOLE = scene(0)


def window(x: int, y: int) -> torch.Tensor:
    return WHOLE[..., y : y + 128, x : x + 128]


@pytest.mark.parametrize("x, y", [(7, 0), (-11, 5), (60, -8)])
def test_a_pan_is_found_to_the_pixel(x, y):
    noise = 0.02 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(9))
    assert translation(window(64, 24), window(64 - x, 24 - y) + noise) == Shift(x, y)


def test_an_object_that_moves_is_not_the_scene():
    frames = [WHOLE.clone() for _ in range(2)]
    for frame, left in zip(frames, (20, 90), strict=True):
        frame[..., 40:120, left : left + 80] = scene(1, 80, 80)
    assert translation(*frames) == Shift(0, 0)


def test_scenes_without_anything_in_common_are_told_apart():
    assert translation(scene(2), scene(3)) is None
    assert translation(torch.full((1, 3, 96, 96), 0.5), scene(3, 96, 96)) is None


def test_frames_are_aligned_on_one_canvas():
    frames = torch.cat([window(40, 10), window(52, 4), window(30, 16)])
    canvas = aligned(frames)
    assert canvas.shape == (3, 3, 128 + 12, 128 + 22)
    inside = (canvas > 0).all(0)
    assert inside.float().mean() > 0.5
    assert torch.equal(canvas[0][inside], canvas[1][inside]) and torch.equal(canvas[0][inside], canvas[2][inside])


def test_what_comes_into_view_is_new():
    image = scene(4, 64, 64)
    moved, new = translated(image, Shift(-10, 4))
    assert torch.equal(moved[..., 4:, :54], image[..., :60, 10:])
    assert torch.equal(new, F.pad(torch.zeros(1, 1, 60, 54), (0, 10, 4, 0), value=1.0))
    assert float(1 - new.mean()) == pytest.approx(overlap(Shift(-10, 4), (64, 64)))
    assert translated(image, Shift(100, 0))[1].all()
