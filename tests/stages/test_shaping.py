"""Shaping with a quality: no stains, no place above the cap, grey; and the final picture keeps its limits."""

from __future__ import annotations

import pytest
import torch

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.metrics import LUMA_COLOUR
from onrw_core.imaging.rounding import round_8bit
from onrw_core.imaging.ssimulacra2 import ssimulacra2
from onrw_core.imaging.visible_error import VisibleError, norm
from onrw_core.stages.composition import CompositionOptions, compose
from onrw_core.stages.limits import limits
from onrw_core.stages.shaping import Shaping


@pytest.fixture
def original():
    return (0.5 + gaussian_blur(torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3)), 2.0)).clamp(
        0, 1
    )


@pytest.fixture
def residual():
    noise = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(6))
    return gaussian_blur(noise, 1.5) / 20


def shaping_of(original, **changes):
    return Shaping(original, **{"quality": 90, "target_psnr": 42, "visibility": True, "luma_only": True} | changes)


def test_a_strong_place_is_capped_and_the_rest_stays(original, residual):
    shaping = shaping_of(original)
    plain = shaping(residual)
    residual[..., 40:48, 60:68] *= 50
    strong = shaping(residual)
    place, far = (..., slice(40, 48), slice(60, 68)), (..., slice(0, 96), slice(0, 32))
    assert strong[place].abs().mean() < 6 * plain[place].abs().mean()
    assert strong[far].abs().mean() == pytest.approx(float(plain[far].abs().mean()), rel=0.3)


def test_with_a_target_psnr_the_map_determines_the_local_strength(original, residual):
    """However uneven the residual is. Near the border between its parts the neighbourhoods of both count."""
    uneven = residual.clone()
    uneven[..., :64] *= 5
    shaping = shaping_of(original, quality=None)
    for part in (..., slice(0, 32)), (..., slice(96, 128)):
        strength = (shaping(uneven) / shaping.weight)[part].square().mean().sqrt()
        assert float(strength) == pytest.approx(float((shaping(residual) / shaping.weight).std()), rel=0.1)


def test_stains_are_left_out(original):
    stain = gaussian_blur(torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(2)), 20.0)
    shaping = shaping_of(original, visibility=False)
    assert shaping_of(original)(stain).std() < 0.5 * shaping(stain).std()


def test_grey_images_stay_grey_with_a_target_psnr(original):
    grey = round_8bit(original.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert shaping_of(grey, quality=None).colour == (1, 1, 1)
    assert shaping_of(original, quality=None).colour == LUMA_COLOUR


def test_of_waves_of_32_pixels_about_half_is_taken_away(original):
    """A Gaussian mean over 6 pixels passes exp(-2 (6 pi / 32)^2) = .50 of them, of blocks of 4 pixels .46, and nothing
    of waves of 8 pixels."""
    shaping, inside, left = shaping_of(original), (..., slice(32, 64), slice(32, 96)), {}
    for wavelength in (8, 32):
        wave = torch.sin(2 * torch.pi * torch.arange(128) / wavelength).expand(1, 3, 96, 128)
        left[wavelength] = float(shaping(1e-5 * wave)[inside].std())  # all of the same strength, so the cap is too
    assert left[32] == pytest.approx(0.54 * left[8], rel=0.05)


def test_with_a_target_psnr_peaks_are_compressed_the_same_in_both_directions(original, residual):
    residual[..., 40, 60] = 20 * residual.std()
    shaping = shaping_of(original, quality=None)
    strength = (shaping(residual) / shaping.weight).abs()
    assert torch.allclose(shaping(-residual), -shaping(residual), atol=1e-6)
    assert strength[..., 40, 60] < 5 * strength.median()


def test_colour_is_grey_with_a_quality(original, residual):
    shaping = shaping_of(original)
    coloured = shaping.coloured(shaping(residual))
    assert torch.equal(coloured[:, 0], coloured[:, 1]) and torch.equal(coloured[:, 0], coloured[:, 2])
    assert shaping_of(original, luma_only=False)(residual).shape == residual.shape


@pytest.mark.parametrize("quality", [80, 90])
def test_composed_picture_keeps_its_limits(original, residual, quality):
    larger = torch.nn.functional.interpolate(original, scale_factor=1.5, mode="bilinear").clamp(0, 1)
    result = compose(larger, original + residual, original, CompositionOptions(quality=quality, luma_only=True))
    bounds, error = limits(quality), VisibleError(larger).map(result.image)
    score = float(ssimulacra2(result.image, larger))
    assert score >= quality - 0.01 and norm(error) <= bounds.norm + 0.001 and error.max() <= bounds.worst + 0.001
    assert result.residual.abs().max() <= bounds.peak + 0.5 / 255
    # As strong as they allow.
    assert score < quality + 0.5 or norm(error) > 0.95 * bounds.norm or error.max() > 0.95 * bounds.worst
