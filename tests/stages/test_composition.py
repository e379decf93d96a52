import logging
import math
import re

import pytest
import torch
import torch.nn.functional as F

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.metrics import LUMA_COLOUR, luminance, psnr
from onrw_core.imaging.rounding import round_8bit
from onrw_core.stages.composition import Composer, CompositionOptions, compose
from onrw_core.stages.noise_optimisation import PRESETS


def smooth(seed, size, sigma=2.0):
    drawn = gaussian_blur(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)), sigma)
    return drawn / drawn.std()


@pytest.fixture(scope="module")
def scene():
    """An original, a decoded picture far from it (a poor autoencoder) and the decoded picture with a mark."""
    original = round_8bit(0.5 + 0.15 * smooth(0, (96, 128)))
    decoded = (original + 0.05 * smooth(1, (96, 128))).clamp(0, 1)
    return original, decoded + 0.03 * smooth(2, (96, 128), 1.0), decoded


@pytest.mark.parametrize("target", [34.0, 38.0, 42.0, 46.0, 50.0])
@pytest.mark.parametrize("visibility", [True, False])
def test_target_psnr_is_met_after_rounding(scene, target, visibility, caplog):
    result = compose(*scene, CompositionOptions(target_psnr=target, visibility=visibility))
    levels = result.image * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert result.psnr == pytest.approx(target, abs=0.02) and not caplog.records
    assert result.psnr == result.psnr_image == psnr(result.image, scene[0])
    assert torch.equal(result.residual, result.image - scene[0])


@pytest.mark.parametrize("size", [(96, 128), (150, 200), (300, 400), (48, 64)])
def test_any_resolution_carries_the_same_residual(scene, size):
    _, decoded, decoded_original = scene
    original = round_8bit(0.5 + 0.15 * smooth(0, (96, 128)))
    original = round_8bit(F.interpolate(original, size=size, mode="bicubic", antialias=True))
    result = compose(original, decoded, decoded_original, CompositionOptions(target_psnr=40, visibility=False))
    assert result.image.shape[-2:] == size
    assert result.psnr == pytest.approx(40, abs=0.02)
    back = F.interpolate(result.residual, size=(96, 128), mode="bicubic", antialias=True).flatten()
    similarity = F.cosine_similarity(back, (decoded - decoded_original).flatten(), dim=0)
    assert similarity > 0.9


def test_shrinking_leaves_out_what_is_too_fine(scene):
    """Stripes of three pixels, at a quarter of the size."""
    _, decoded, decoded_original = scene
    stripes = 0.2 * torch.cos(torch.arange(128) * 2 * math.pi / 3)
    small = F.interpolate(decoded_original, size=(24, 32), mode="area")
    plain, striped = (
        compose(
            small, decoded + extra, decoded_original, CompositionOptions(target_psnr=40, visibility=False)
        ).residual.flatten()
        for extra in (0, stripes)
    )
    assert F.cosine_similarity(plain, striped, dim=0) > 0.9


def test_residual_of_zero_returns_the_original(scene):
    original, _, decoded = scene
    result = compose(original, decoded, decoded)
    assert torch.equal(result.image, original)
    assert (result.scale, result.psnr) == (0.0, math.inf)


def test_a_target_that_cannot_be_met_is_said(caplog):
    white, zeros = torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    with caplog.at_level(logging.WARNING):
        result = compose(white, zeros + 0.01, zeros, CompositionOptions(visibility=False))
    assert torch.equal(result.image, white) and "cannot be met" in caplog.text


def test_saturated_pictures_still_meet_the_target(scene):
    original = (3 * (scene[0] - 0.5) + 0.5).clamp(0, 1)
    assert compose(round_8bit(original), *scene[1:], CompositionOptions(target_psnr=40)).psnr == pytest.approx(
        40, abs=0.02
    )


def test_mask_confines_the_mark_and_weighs_the_psnr(scene):
    original = scene[0]
    mask = torch.zeros(1, 1, 96, 128)
    mask[..., :48, :64] = 1
    result = compose(*scene, CompositionOptions(target_psnr=40), mask=mask)
    assert result.residual[..., 48:, :].abs().max() == 0 and result.residual[..., 64:].abs().max() == 0
    assert result.psnr == pytest.approx(40, abs=0.02)
    assert result.psnr == pytest.approx(psnr(result.image[..., :48, :64], original[..., :48, :64]), abs=1e-4)
    assert result.psnr_image == pytest.approx(40 + 10 * math.log10(4), abs=0.03)


def test_mask_of_another_size_is_fitted(scene):
    mask = torch.ones(1, 1, 12, 16)
    assert compose(*scene, mask=mask).psnr == pytest.approx(42, abs=0.02)


def test_mask_mode_blends(scene):
    original, decoded, decoded_original = scene
    mask = torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(5))
    result = compose(*scene, CompositionOptions(mode="mask"), mask=mask)
    assert torch.allclose(result.image, (mask * decoded + (1 - mask) * original).clamp(0, 1), atol=0.5 / 255 + 1e-6)
    assert torch.equal(compose(*scene, CompositionOptions(mode="mask")).image, round_8bit(decoded))
    inside = Composer(original, CompositionOptions(mode="mask"), mask=mask)(decoded, decoded_original)
    assert torch.allclose(inside, result.image, atol=1e-6)


def test_luma_only_adds_one_colour(scene):
    """Luminance changes as that of the decoded residual does, by at least a tenth more for the squared error."""
    original, decoded, decoded_original = scene
    result = compose(
        0.8 * original + 0.1, decoded, decoded_original, CompositionOptions(luma_only=True, visibility=False)
    )
    colour = torch.tensor(LUMA_COLOUR)[:, None, None]
    assert (result.residual - colour * luminance(result.residual)).abs().max() < 2 / 255
    grey = luminance(decoded - decoded_original)
    assert torch.nn.functional.cosine_similarity(luminance(result.residual).flatten(), grey.flatten(), 0) > 0.99
    share = luminance(result.residual).square().mean() / result.residual.square().mean()
    assert share > 1.3  # 1 for a residual of grey


def test_grey_pictures_stay_grey(scene):
    grey = round_8bit(luminance(scene[0]).expand(-1, 3, -1, -1))
    image = compose(grey, *scene[1:], CompositionOptions(luma_only=True, target_psnr=40)).image
    assert torch.equal(image, image[:, :1].expand(-1, 3, -1, -1))
    assert psnr(image, grey) == pytest.approx(40, abs=0.1)


def test_loop_and_final_picture_agree(scene):
    """A residual above the target comes out alike from both."""
    inside = Composer(scene[0], CompositionOptions(target_psnr=40))(*scene[1:])
    final = compose(*scene, CompositionOptions(target_psnr=40))
    assert psnr(inside, scene[0]) == pytest.approx(40, abs=0.15)
    assert psnr(inside, final.image) > 58


def test_weak_residuals_are_brought_to_the_target(scene):
    original, decoded, decoded_original = scene
    for strength in (1e-3, 0.3):
        marked = decoded_original + strength * (decoded - decoded_original) / (decoded - decoded_original).std()
        image = Composer(original, CompositionOptions(target_psnr=40))(marked, decoded_original)
        assert psnr(image, original) == pytest.approx(40, abs=0.15)


def test_strength_follows_the_map_wherever_the_decoder_put_it(scene):
    """A residual ten times stronger in one half comes out with the map's strength in both."""
    original, decoded, decoded_original = scene
    uneven = decoded - decoded_original
    uneven = torch.cat([uneven[..., :64], 10 * uneven[..., 64:]], -1)
    composer = Composer(original)
    shaped = composer.shaped(uneven) / composer.shaping.weight
    left, right = shaped[..., :44].std(), shaped[..., 84:].std()
    assert left / right == pytest.approx(1, abs=0.1)


def test_gradients_pass_rounding_clamping_and_zero(scene):
    original, _, decoded_original = scene
    decoded = decoded_original.clone().requires_grad_(True)
    towards = torch.rand(original.shape, generator=torch.Generator().manual_seed(1))
    image = Composer((2 * original - 0.5).clamp(0, 1))(decoded, decoded_original)
    (gradient,) = torch.autograd.grad((image * towards).sum(), decoded)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.99


def test_gradients_pass_clamping_in_mask_mode(scene):
    original, decoded, decoded_original = scene
    bright = (decoded + 1).requires_grad_()  # all of it above 1
    Composer(original, CompositionOptions(mode="mask"))(bright, decoded_original).sum().backward()
    assert (bright.grad == 1).all()


def test_the_optimiser_feels_the_normalisation(scene):
    """Growing the whole residual changes nothing: strength in one place costs strength in all others."""
    original, decoded, decoded_original = scene
    residual = (decoded - decoded_original).requires_grad_(True)
    composer = Composer(original)
    shaped = composer.shaped(residual)
    scaled = composer.scale(shaped) * shaped
    (gradient,) = torch.autograd.grad((scaled * shaped.detach()).sum(), residual)
    growth = (gradient * residual).sum() / (scaled * shaped).sum()
    assert growth.item() == pytest.approx(0.0, abs=1e-3)


def test_bad_arguments_say_what_is_wrong(scene):
    original, decoded, decoded_original = scene
    with pytest.raises(ValueError, match="unknown composition 'blend'"):
        Composer(original, CompositionOptions(mode="blend"))
    with pytest.raises(ValueError, match="one RGB image"):
        compose(original[0], decoded, decoded_original)
    with pytest.raises(ValueError, match="mask: has shape"):
        Composer(original, mask=torch.ones(96, 128))
    with pytest.raises(ValueError, match="mask: is empty"):
        compose(*scene, mask=torch.zeros(1, 1, 96, 128))
    with pytest.raises(ValueError, match="two of one size"):
        compose(original, decoded, decoded_original[..., :64])


def test_what_lies_outside_the_range_is_no_error_of_the_mark():
    """A bicubic enlargement overshoots. Its clipping, counted as the mark's, would leave nothing to the mark."""
    torch.manual_seed(0)
    page = (torch.rand(1, 1, 96, 128) > 0.5).float().expand(1, 3, -1, -1)
    overshoot = page * 1.4 - 0.2
    decoded = 0.02 * torch.randn(1, 3, 96, 128)
    composed = compose(overshoot, decoded, torch.zeros_like(decoded))
    clamped = compose(page, decoded, torch.zeros_like(decoded))
    assert torch.equal(composed.image, clamped.image) and composed.psnr == clamped.psnr
    assert composed.psnr == pytest.approx(42, abs=0.05)
    assert composed.residual.square().mean() > 1e-5
    assert torch.equal(Composer(overshoot).original, page)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_picture_is_made_of_values_that_are_not_finite(scene, value):
    for number, name in enumerate(("original", "decoded", "decoded_original")):
        pictures = [picture.clone() for picture in scene]
        pictures[number][0, 1, 5, 7] = value
        with pytest.raises(ValueError, match=f"^{name}: has NaN or infinite values"):
            compose(*pictures)
    mask = torch.ones(1, 1, 96, 128)
    mask[..., 3] = value
    with pytest.raises(ValueError, match="^mask: .*NaN"):
        compose(*scene, mask=mask)
    with pytest.raises(ValueError, match="target_psnr"):
        compose(*scene, CompositionOptions(target_psnr=value))
    with pytest.raises(ValueError, match="target_psnr"):
        PRESETS["fast"].with_(target_psnr=value)


@pytest.mark.parametrize("value", [1e9, 60.1, 19.9, 0.0, -1.0])
@pytest.mark.parametrize("options", [CompositionOptions, PRESETS["fast"].with_])
def test_the_range_of_the_psnr_is_that_of_its_error(options, value):
    with pytest.raises(ValueError, match=re.escape(f"target_psnr: is {value}; give decibels, 20 to 60")):
        options(target_psnr=value)
