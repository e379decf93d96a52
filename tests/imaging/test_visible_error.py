"""Local visible error: properties of the map, and its distance from butteraugli where that is installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.rounding import round_8bit
from onrw_core.imaging.visible_error import VisibleError, norm


@pytest.fixture
def pattern(generator):
    """A change of the mark's frequencies, (1, 1, 96, 128), root mean square 1."""
    noise = gaussian_blur(torch.randn(1, 1, 96, 128, generator=generator), 1.5)
    band = noise - gaussian_blur(noise, 5.0)
    return band / band.square().mean().sqrt()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(4)


@pytest.fixture
def half_textured(generator):
    """Flat grey on the left, texture on the right."""
    image = torch.full((1, 3, 96, 128), 0.5)
    image[..., 64:] += 0.12 * torch.randn(1, 1, 96, 64, generator=generator)
    return round_8bit(image)


def test_map_has_half_the_size_and_is_zero_for_equal_pictures():
    image = torch.rand(1, 3, 33, 46, generator=torch.Generator().manual_seed(1))
    error = VisibleError(image).map(image)
    assert error.shape == (1, 1, 17, 23)
    assert error.max() < 1e-3


def test_map_grows_in_proportion_to_the_change(half_textured, pattern):
    visible = VisibleError(half_textured)
    once, twice = (norm(visible.map(half_textured + k * 0.004 * pattern)) for k in (1, 2))
    assert float(twice / once) == pytest.approx(2, rel=0.03)


def test_texture_masks_and_an_edge_does_not_mask_the_flat_area_beside_it(half_textured, pattern):
    error = VisibleError(half_textured).map(half_textured + 0.004 * pattern)
    flat, textured = error[..., :24].mean(), error[..., 40:].mean()
    assert flat > 2 * textured
    edge = torch.full((1, 3, 96, 128), 0.3)
    edge[..., 64:] = 0.7
    error = VisibleError(edge).map(edge + 0.004 * pattern)
    assert error[..., 22:28].mean() > 0.7 * error[..., :16].mean()


def test_sensitivity_predicts_the_error_of_a_pattern(half_textured, pattern):
    visible = VisibleError(half_textured)
    error = visible.map(half_textured + 0.004 * pattern)
    predicted = 0.004 * visible.sensitivity(torch.ones(1, 3, 1, 1))
    for part in (..., slice(4, 24)), (..., slice(40, 60)):
        wide = (..., slice(2 * part[1].start, 2 * part[1].stop))
        # .45 to .51 of it over four seeds.
        assert 0.4 < float(error[part].square().mean().sqrt() / predicted[wide].square().mean().sqrt()) < 0.6


def test_norm_is_the_mean_of_three_norms_and_takes_weights():
    error = torch.tensor([[[[1.0, 2.0]]]])
    expected = sum(((1 + 2**p) / 2) ** (1 / p) for p in (3, 6, 12)) / 3
    assert float(norm(error)) == pytest.approx(expected, rel=1e-5)
    assert float(norm(error, torch.tensor([[[[3.0, 0.0]]]]))) == pytest.approx(1.0, rel=1e-5)


def test_gradient_is_that_of_the_norm(half_textured, pattern):
    visible = VisibleError(half_textured)
    change = (0.004 * pattern).expand(1, 3, -1, -1)
    scale = torch.ones((), requires_grad=True)
    norm(visible.map(half_textured + scale * change)).backward()
    above, below = (float(norm(visible.map(half_textured + k * change))) for k in (1.05, 0.95))
    assert float(scale.grad) == pytest.approx((above - below) / 0.1, rel=0.02)


@pytest.mark.skipif(shutil.which("butteraugli_main") is None, reason="needs butteraugli_main (Debian libjxl-devtools)")
def test_norm_is_about_that_of_butteraugli(half_textured, pattern, tmp_path):
    marked = round_8bit(half_textured + 0.006 * pattern)
    for name, image in (("a.png", half_textured), ("b.png", marked)):
        Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(tmp_path / name)
    command = ["butteraugli_main", tmp_path / "a.png", tmp_path / "b.png"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    reference = float(re.search(r"3-norm: ([\d.]+)", printed)[1])
    assert float(norm(VisibleError(half_textured).map(marked))) == pytest.approx(reference, rel=0.35)


def test_sensitivity_is_about_the_same_in_flat_areas_of_any_colour():
    """A channel above and one below mid-grey must not be stepped against each other."""
    image = torch.full((1, 3, 32, 96), 0.55)
    image[..., 48:] = torch.tensor([0.9, 0.35, 0.39])[:, None, None]  # about as light
    sensitivity = VisibleError(image).sensitivity(torch.ones(1, 3, 1, 1))
    assert 0.7 < float(sensitivity[..., 80:].mean() / sensitivity[..., :16].mean()) < 1.4
