import pytest
import torch

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.metrics import SSIM_C2, SSIM_SIGMA, flattest_window_psnr, psnr, ssim
from onrw_core.imaging.rounding import round_8bit
from onrw_core.stages.perceptual_map import CEILING, FLOOR, SSIM_LOSS, visibility


def noise(seed, size=(256, 256), sigma=1.5):
    drawn = gaussian_blur(torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed)), sigma)
    return drawn / drawn.std()


@pytest.fixture(scope="module")
def half_sky():
    """A smooth sky above a textured ground."""
    picture = 0.6 + 0.1 * torch.linspace(0, 1, 256)[None, None, :, None].expand(1, 1, 256, 256).clone()
    picture[..., 128:, :] += 0.12 * noise(0)[..., 128:, :]
    return round_8bit(picture.expand(-1, 3, -1, -1))


def marked(original, weight, target=42.0, seed=9):
    residual = noise(seed, original.shape[-2:], 1.2) * weight
    scale = 10 ** (-target / 20) / residual.expand_as(original).square().mean().sqrt()
    return round_8bit(original + scale * residual)


def test_shape_norm_bounds_and_no_gradient(half_sky):
    images = torch.cat([half_sky, half_sky.flip(-2)]).requires_grad_(True)
    weight = visibility(images)
    assert weight.shape == (2, 1, 256, 256) and not weight.requires_grad
    assert torch.allclose(weight.square().mean((1, 2, 3)), torch.ones(2), atol=1e-4)
    assert weight.min() > 0.9 * FLOOR and weight.max() < 1.2 * CEILING
    assert torch.allclose(weight[1], weight[0].flip(-2), atol=1e-3)


def test_sky_takes_less_than_texture_smoothly(half_sky):
    weight = visibility(half_sky)[0, 0]
    assert weight[:100].mean() < 0.6 * weight[160:].mean()
    steps = weight.log().diff(dim=0).abs().max()
    assert steps < 0.2  # 20 % from pixel to pixel at the very horizon


def test_promises_hold_where_uniform_noise_breaks_them(half_sky):
    plain, weighted = marked(half_sky, 1.0), marked(half_sky, visibility(half_sky))
    assert psnr(weighted, half_sky) == pytest.approx(psnr(plain, half_sky), abs=0.1)
    assert flattest_window_psnr(plain, half_sky) < 43
    assert flattest_window_psnr(weighted, half_sky) >= 46
    assert ssim(plain, half_sky) < 0.98 <= ssim(weighted, half_sky)


def test_a_picture_textured_all_over_has_a_quiet_flattest_window_too():
    strength = 0.1 + 0.01 * torch.linspace(0, 1, 256)[None, None, None]
    picture = round_8bit((0.5 + strength * noise(1)).expand(-1, 3, -1, -1))
    assert flattest_window_psnr(marked(picture, visibility(picture)), picture) >= 45.5  # 42 when even


def test_a_blank_picture_is_weighted_evenly():
    weight = visibility(torch.full((1, 3, 96, 128), 0.4))
    assert torch.allclose(weight, torch.ones_like(weight), atol=0.05)


def test_pictures_smaller_than_the_window_work():
    assert visibility(torch.rand(1, 3, 40, 200)).isfinite().all()


def test_lower_targets_need_more_uneven_maps(half_sky):
    textured = round_8bit((0.5 + 0.03 * noise(3) * (1 + noise(4, sigma=20)).clamp(0.1, 3)).expand(-1, 3, -1, -1))
    spread = [visibility(textured, target).log().std().item() for target in (50.0, 42.0, 36.0)]
    assert spread[0] < spread[2] and spread[0] <= spread[1] <= spread[2]
    assert spread[2] > 1.1 * spread[0]


@pytest.mark.parametrize("target", [42.0, 41.0, 40.0])
def test_the_exponent_is_the_smallest_that_keeps_the_loss_of_similarity(half_sky, target):
    centred = half_sky - half_sky.mean((2, 3), keepdim=True)
    variance = gaussian_blur(centred.square(), SSIM_SIGMA) - gaussian_blur(centred, SSIM_SIGMA).square()
    loss = 10 ** (-target / 10) * (visibility(half_sky, target).square() / (2 * variance.clamp_min(0) + SSIM_C2)).mean()
    assert 0.95 * SSIM_LOSS < loss <= 1.001 * SSIM_LOSS


def test_very_dark_and_very_bright_areas_take_more():
    """Luminance adaptation: the same texture at three levels."""
    texture = 0.02 * noise(5, (256, 384))
    level = torch.tensor([0.06, 0.5, 0.94]).repeat_interleave(128)
    weight = visibility(round_8bit((texture + level).clamp(0, 1).expand(-1, 3, -1, -1)))[0, 0]
    dark, middle, bright = (weight[:, 128 * i + 40 : 128 * i + 88].mean().item() for i in range(3))
    assert 1.2 * middle < dark < 1.4 * middle
    assert 1.1 * middle < bright < 1.3 * middle


def test_areas_below_the_noise_of_cameras_are_equally_flat():
    image = torch.full((1, 3, 128, 256), 0.5)
    image[..., 128:] += 3e-4 * torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    weight = visibility(image)[0, 0]
    assert weight[:, 156:].mean() == pytest.approx(weight[:, :100].mean().item(), rel=0.02)
