import pytest
import torch
from torch.nn.functional import interpolate

from onrw_core.imaging.rounding import LEVELS, round_8bit
from onrw_core.imaging.ssimulacra2 import ssimulacra2
from onrw_core.stages.limits import limits
from onrw_core.stages.noise_optimisation import PRESETS
from onrw_core.stages.quality import MARGIN, MASK_MARGIN, Judge, scaled_to_quality


def scene(seed=0, size=(140, 150)):
    """A smooth picture with texture, and a residual with some strong places."""
    generator = torch.Generator().manual_seed(seed)
    original = interpolate(torch.rand(1, 3, 7, 7, generator=generator), size, mode="bicubic")
    original += 0.1 * torch.randn(1, 1, *size, generator=generator)
    residual = torch.randn(1, 1, *size, generator=generator).expand(1, 3, *size).clone()
    residual[..., 60:64, 60:64] *= 6
    return round_8bit(original), residual


@pytest.mark.parametrize("quality", [70, 80, 90, 95])
def test_the_strongest_scale_that_keeps_the_quality_and_its_limits(quality):
    original, residual = scene()
    image, scale, judgement = scaled_to_quality(original, residual, quality)
    bounds = limits(quality)
    assert torch.equal(image, round_8bit(image))
    assert judgement.quality == pytest.approx(ssimulacra2(image, original).item(), abs=1e-4)
    assert judgement.quality >= quality and judgement.worst <= bounds.worst and judgement.norm <= bounds.norm
    assert (image - original).abs().max() <= bounds.peak + 0.51 / LEVELS
    # Ten per cent more would break one of them: nothing is left over.
    more = Judge(original)(round_8bit(original + (1.1 * scale * residual).clamp(-bounds.peak, bounds.peak)))
    assert more.quality < quality or more.worst > bounds.worst or more.norm > bounds.norm


@pytest.mark.parametrize("quality", [70, 80, 90, 95])
@pytest.mark.parametrize("seed", range(3))
def test_nearly_all_of_the_limits_is_used(seed, quality):
    original, residual = scene(seed, (64, 72))
    judgement, bounds = scaled_to_quality(original, residual, quality)[2], limits(quality)
    score = (100 - judgement.quality) / (100 - quality - MARGIN)
    assert 0.97 < max(score, judgement.worst / bounds.worst, judgement.norm / bounds.norm) <= 1


@pytest.mark.parametrize("quality", [70, 90])
def test_the_quality_binds_where_its_limits_do_not(quality):
    """Colour noise, which SSIMULACRA2 judges more strictly than the visible error."""
    original, _ = scene()
    residual = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    judgement = scaled_to_quality(original, residual, quality)[2]
    assert quality <= judgement.quality < quality + 0.3
    assert judgement.norm < 0.8 * limits(quality).norm and judgement.worst < 0.8 * limits(quality).worst


def test_single_strong_values_are_cut_and_do_not_hold_the_rest_down():
    original, residual = scene()
    plain = residual.clone()
    residual[..., 100, 100] = 1000.0
    assert scaled_to_quality(original, residual, 90)[1] == pytest.approx(
        scaled_to_quality(original, plain, 90)[1], rel=0.15
    )


@pytest.mark.parametrize("size", [(140, 150), (141, 151)])
def test_only_what_lies_in_the_mask_counts(size):
    original, residual = scene(size=size)
    mask = torch.zeros(1, 1, *original.shape[-2:])
    mask[..., :40] = 1
    image, _, judgement = scaled_to_quality(original, mask * residual, 90, mask)
    bounds, score = limits(90), (100 - judgement.quality) / (10 - MASK_MARGIN)
    assert 0.97 <= max(score, judgement.norm / bounds.norm, judgement.worst / bounds.worst) <= 1
    crop = ssimulacra2(image[..., :40], original[..., :40]).item()
    assert crop == pytest.approx(judgement.quality, abs=1e-3)  # what a rectangular sticker shows


def test_the_smallest_mask_has_a_score():
    original, residual = scene(size=(40, 40))
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 39, 0] = 1
    assert 90 <= scaled_to_quality(original, mask * residual, 90, mask)[2].quality < 100


def test_strips_change_nothing(monkeypatch):
    original, residual = scene(size=(401, 150))
    marked = round_8bit(original + 0.01 * residual)

    def figures():
        judge = Judge(original)
        return judge.error(marked), judge(marked), scaled_to_quality(original, residual, 90)

    error, judgement, (image, scale, _) = figures()
    monkeypatch.setattr("onrw_core.imaging.strips.PIXELS", 150 * 20)
    error_of_strips, judgement_of_strips, (image_of_strips, scale_of_strips, _) = figures()
    assert torch.allclose(error, error_of_strips, rtol=1e-4)
    assert judgement.quality == pytest.approx(judgement_of_strips.quality, abs=1e-4)
    assert scale == pytest.approx(scale_of_strips, rel=1e-3)
    assert (image - image_of_strips).abs().max() < 1.01 / LEVELS


def test_nothing_to_add():
    original, residual = scene()
    image, scale, judgement = scaled_to_quality(original, 0 * residual, 90)
    assert torch.equal(image, original) and scale == 0 and judgement.quality == 100


def test_settings_take_a_quality_or_a_target_psnr():
    settings = PRESETS["fast"]
    assert settings.quality == 90
    assert settings.with_(target_psnr=42.0).quality is None
    assert settings.with_(quality=80.0, target_psnr=42.0).quality is None
    assert settings.with_(target_psnr=42.0).with_(quality=80.0).quality == 80
    assert settings.with_(target_psnr=42.0).with_(iterations=3).quality is None
    for allowed, refused in ((30.0, 29.9), (98.0, 98.1)):
        assert settings.with_(quality=allowed).quality == allowed
        with pytest.raises(ValueError, match="quality"):
            settings.with_(quality=refused)
