"""Tone attacks against their definitions, written here in another way."""

import colorsys

import pytest
import torch

from onrw_core.attacks import attack
from onrw_core.imaging.metrics import luminance

LEVEL = 1 / 255


@pytest.fixture
def muted(photo):
    """The blobs with a third of their contrast: no attack here takes them to black or white."""
    return 0.5 + (photo - 0.5) / 3


def colour(*rgb: float) -> torch.Tensor:
    return torch.tensor(rgb).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "neutral"), [("brightness", 1), ("contrast", 1), ("saturation", 1), ("gamma", 1), ("hue", 0)]
)
def test_neutral_strength_changes_nothing(photo, name, neutral):
    assert torch.allclose(attack(name, neutral)(photo).images, photo, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.3, 3.0])
def test_brightness_multiplies_and_saturates(photo, factor):
    assert torch.allclose(attack("brightness", factor)(photo).images, (photo * factor).clamp(0, 1), atol=LEVEL)


@pytest.mark.parametrize("factor", [0.4, 1.2])
def test_contrast_is_about_the_mean_luminance_of_each_image(muted, factor):
    images = muted * torch.tensor([0.6, 0.9]).reshape(2, 1, 1, 1)
    changed = attack("contrast", factor)(images).images
    for before, after in zip(luminance(images), luminance(changed), strict=True):
        assert after.mean().item() == pytest.approx(before.mean().item(), abs=LEVEL)
        assert after.std().item() == pytest.approx(factor * before.std().item(), rel=0.02)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.7])
def test_saturation_scales_colour_differences_and_keeps_luminance(muted, factor):
    changed = attack("saturation", factor)(muted).images
    assert torch.allclose(luminance(changed), luminance(muted), atol=LEVEL)
    differences = muted[:, 0] - muted[:, 2], changed[:, 0] - changed[:, 2]
    assert torch.allclose(differences[1], factor * differences[0], atol=LEVEL)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_gamma_is_a_power(muted, power):
    assert torch.allclose(attack("gamma", power)(muted).images, muted**power, atol=LEVEL)


def test_gamma_below_one_has_a_finite_gradient_at_black():
    black = torch.zeros(1, 3, 8, 8, requires_grad=True)
    attack("gamma", 0.5)(black).images.sum().backward()
    assert black.grad.isfinite().all()


def test_hue_keeps_luminance_and_grey(muted):
    grey = luminance(muted).expand_as(muted)
    assert torch.allclose(attack("hue", 140)(grey).images, grey, atol=LEVEL)
    turned = attack("hue", 70)(muted).images
    assert torch.allclose(luminance(turned), luminance(muted), atol=2 * LEVEL)


def test_positive_hue_turns_red_towards_blue():
    """The direction of the YIQ plane: counter-clockwise, as the phase of the colour carrier."""
    red = colour(0.7, 0.4, 0.4)

    def hue_of(degrees: float) -> float:
        return 360 * colorsys.rgb_to_hsv(*attack("hue", degrees)(red).images[0, :, 0, 0].tolist())[0]

    assert 200 < hue_of(120) < 280
    assert 80 < hue_of(-120) < 160
    assert hue_of(30) > 300 and hue_of(-30) < 60


def test_hue_angles_add(muted):
    twice = attack("hue", 25)(attack("hue", 25)(muted).images).images
    assert torch.allclose(twice, attack("hue", 50)(muted).images, atol=2 * LEVEL)
    assert (attack("hue", 50)(muted).images - muted).abs().max() > 0.02
