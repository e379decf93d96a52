import pytest
import torch

from onrw_core.attacks import training_mix
from onrw_core.extractors.base import Extractor
from onrw_core.stages.composition import Composition
from onrw_core.stages.noise_optimisation import PRESETS
from onrw_core.stages.quality import HIGHEST, Judgement
from onrw_core.stages.sparing import MARGIN, RESOLUTION, spared

BITS = torch.tensor([1, 0, 1, 1])


class Threshold(Extractor):
    """Reads the right bits of images whose change is at least `least`."""

    name, num_bits = "threshold", 4

    def __init__(self, least):
        self.least = least

    def loss_and_logits(self, images, bits, geometry=None):
        strong = images.mean() - 0.5 >= self.least
        logits = (2.0 * BITS - 1)[None] * (1.0 if strong else -1.0)
        return logits.sum(), logits

    def logits(self, images, geometry=None):
        raise NotImplementedError

    def read(self, image, key=None, **options):
        raise NotImplementedError


def composed(quality):
    """A change of (100 - quality) levels everywhere."""
    original = torch.full((1, 3, 64, 64), 0.5)
    image = original + (100 - quality) / 255
    return Composition(image, original, 1.0, Judgement(quality, 0, 0), 0, 0)


def result(least):
    mix = training_mix("none")
    generator = torch.Generator().manual_seed(0)
    return spared(composed, 80.0, Threshold(least), BITS, mix, generator, 64).judgement.quality


def test_the_highest_quality_that_holds_with_the_margin():
    allowed = 100 - 8 / MARGIN  # 8 levels are left after the margin
    assert allowed - 2 * RESOLUTION < result(7.6 / 255) <= allowed + 1


def test_a_watermark_that_does_not_hold_keeps_its_quality():
    assert result(19 / 255) == 80  # holds without the margin, not with it


def test_a_watermark_that_always_holds_reaches_the_highest_quality():
    assert HIGHEST - RESOLUTION <= result(-1.0) <= HIGHEST


def test_sparing_needs_a_quality():
    with pytest.raises(ValueError, match="spare: raises the quality"):
        PRESETS["fast"].with_(target_psnr=42.0, spare=True)
    with pytest.raises(ValueError, match="spare: raises the quality of residual composition"):
        PRESETS["fast"].with_(composition="mask", spare=True)
    assert PRESETS["fast"].with_(spare=True).spare
