"""The matched filter: the position of an image in the pattern, by the key alone."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed import reader
from onrw_core.extractors.keyed.alignment import ORIENTATIONS
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.keyed.matched_filter import peaks
from onrw_core.imaging.geometry import Geometry, resample
from onrw_core.payload.keys import Key

EXTRACTOR = KeyedExtractor(Key(bytes(range(32))), 48, label=None, place=(3, 30))
BITS = torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_peak_gives_the_shift_within_two_pixels(turns, mirrored, sign):
    generator = torch.Generator().manual_seed(1)
    image = sign * EXTRACTOR.pattern(BITS, (256, 320)) + 2 * torch.randn(256, 320, generator=generator)
    corner = torch.tensor([37.5, 21.5])  # the centre of the crop's first pixel
    image = image[21:, 37:]
    if mirrored:
        image, where = image.flip(1), (282.5, 0.5)
    else:
        where = (0.5, 0.5)
    for _ in range(turns):
        where = (where[1], image.shape[1] - where[0])
        image = image.rot90(1)
    peak = peaks(image, EXTRACTOR.layer, 1)[0]
    found = peak.geometry.apply(torch.tensor(where))
    expected = corner + torch.tensor([30 * 64, 3 * 64])
    assert float(((found - expected + 1024) % 2048 - 1024).abs().max()) < 2
    assert peak.height > 8


def test_a_flat_image_has_no_peak():
    assert [peak.height for peak in peaks(torch.zeros(80, 96), EXTRACTOR.layer, 2)] == [0, 0]


@pytest.mark.parametrize("index", [0, 1, 4])
def test_the_shift_has_no_bias(index):
    """Four crops at quarters of a sample: the errors of rounding to samples cancel."""
    pattern = EXTRACTOR.pattern(BITS, (220, 200))
    orientation = ORIENTATIONS[index].float()
    errors = []
    for offset in (0, 4, 8, 12):
        if index == 0:
            image, corner = pattern[offset:, offset:], torch.tensor([offset + 0.5, offset + 0.5])
        else:  # a quarter turn, or the flip of x: the upper right corner of the pattern comes first
            image, corner = pattern[offset:, : -offset or None], torch.tensor([199.5 - offset, offset + 0.5])
            image = image.rot90(1) if index == 1 else image.flip(1)
        geometry = peaks(image, EXTRACTOR.layer, 1, ORIENTATIONS[index : index + 1])[0].geometry
        assert torch.equal(geometry.matrix[:2, :2].float(), orientation)
        found = geometry.apply(torch.tensor([0.5, 0.5])) - torch.tensor([30 * 64, 3 * 64]) - corner
        errors.append((found + 1024) % 2048 - 1024)
    assert float(torch.stack(errors).mean(0).abs().max()) < 0.5


def test_a_weak_mark_that_the_key_finds_is_not_searched_for(monkeypatch):
    stages = []
    monkeypatch.setattr(reader, "searched", lambda *_: (stages.append(number) or [] for number in range(3)))
    grain = 0.5 + 0.03 * torch.randn(1, 3, 230, 230, generator=torch.Generator().manual_seed(1))
    marked = (grain + 0.002 * EXTRACTOR.pattern(BITS, (230, 230))).clamp(0, 1)[0]
    reading = EXTRACTOR.read(marked[:, 21:, 37:])
    assert -18 < reading.log10_p < -6 and not reading.searched
    assert stages == [0]


def test_the_deep_search_reads_small_rotations_and_scales_without_a_pilot(monkeypatch):
    monkeypatch.setattr(reader, "searched", lambda *_: iter(()))  # there is no pilot to be found
    monkeypatch.setattr(reader, "DEEP_ANGLES", [-2.0, 2.86])
    monkeypatch.setattr(reader, "DEEP_SCALES", [0.9, 0.975])
    grain = 0.5 + 0.03 * torch.randn(1, 3, 320, 384, generator=torch.Generator().manual_seed(1))
    marked = (grain + 0.012 * EXTRACTOR.pattern(BITS, (320, 384))).clamp(0, 1)
    turned = resample(marked, Geometry.rotation(3, (320, 384)), (320, 384), "bicubic")
    received = F.interpolate(turned, scale_factor=0.97, mode="bicubic", antialias=True).clamp(0, 1)[0]
    assert not EXTRACTOR.read(received).detected
    shares = []
    reading = EXTRACTOR.read(received, deep=True, progress=shares.append)
    assert reading.detected and torch.equal(reading.bits, BITS) and shares == [0.5, 1.0]
    assert reading.pose.rotation == pytest.approx(3, abs=0.2) and reading.pose.scale == pytest.approx(0.97, abs=0.005)
