"""Filters against SciPy and against what their names promise."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from onrw_core.attacks import attack

LEVEL = 1 / 255


def filtered(images: torch.Tensor, function) -> torch.Tensor:
    planes = images.reshape(-1, *images.shape[-2:]).numpy()
    return torch.from_numpy(np.stack([function(plane) for plane in planes])).reshape(images.shape)


@pytest.mark.parametrize(("name", "neutral"), [("sharpness", 1), ("blur", 0), ("mean", 1)])
def test_neutral_strength_changes_nothing(photo, name, neutral):
    assert torch.allclose(attack(name, neutral)(photo).images, photo, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.5])
def test_blur_is_gaussian(photo, sigma):
    expected = filtered(photo, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest"))
    assert torch.allclose(attack("blur", sigma)(photo).images, expected, atol=1.5 * LEVEL)


@pytest.mark.parametrize(("strength", "side"), [(3, 3), (4, 5), (5, 5), (9, 9)])
def test_mean_is_a_square_window_of_odd_side(photo, strength, side):
    expected = filtered(photo, lambda plane: ndimage.uniform_filter(plane, side, mode="nearest"))
    assert torch.allclose(attack("mean", strength)(photo).images, expected, atol=LEVEL)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0, 4.0])
def test_sharpness_is_linear_about_pillows_smooth_filter(photo, strength):
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = filtered(photo, lambda plane: ndimage.convolve(plane, kernel, mode="nearest"))
    expected = (smooth + strength * (photo - smooth)).clamp(0, 1)
    assert torch.allclose(attack("sharpness", strength)(photo).images, expected, atol=LEVEL)


def test_sharpness_above_one_sharpens_and_below_one_softens():
    edge = torch.full((1, 3, 16, 16), 0.3)
    edge[..., 8:] = 0.7

    def step(strength: float) -> float:
        result = attack("sharpness", strength)(edge).images
        return (result[..., 8] - result[..., 7]).mean().item()

    assert step(1.0) == pytest.approx(0.4, abs=LEVEL)
    assert step(0.0) < step(0.5) < step(1.0) < step(1.5) < step(1.8)
