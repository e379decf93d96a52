"""Blind reading with a key: marks after changes of geometry, and the weights of what is tried."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed import hypotheses, reader, views
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.keyed.pilot_search import PilotSearch
from onrw_core.imaging.geometry import Geometry, resample
from onrw_core.imaging.metrics import LUMA_COLOUR

from .synthetic import BITS, KEY, SIZE, luma, marked, resized, rotated


@pytest.fixture(scope="module")
def picture():
    return marked()


@pytest.mark.parametrize(("width", "height"), [(400, SIZE), (SIZE, 436)])
def test_reads_squeezed_pictures(picture, width, height):
    reading = KeyedExtractor(KEY).read(resized(picture, height, width)[0])
    assert reading.detected and torch.equal(reading.bits, BITS)


def test_weights_of_all_places_are_one_at_most(picture):
    extractor = KeyedExtractor(KEY)
    tried = list(reader.places(PilotSearch(picture[..., :160, :200]), extractor.layer, 512, search=True))
    by_key = [number for number, place in enumerate(tried) if place.area > 100]
    # As received and at the working size: in both projections, and upright in luminance alone.
    assert len(by_key) == 2 * (2 * reader.KEY_PEAKS + reader.UPRIGHT_PEAKS)
    searched = [number for number, place in enumerate(tried) if place.searched]
    assert searched[0] < by_key[0] < searched[-1]  # after the first stage of the search
    assert 0.4 < sum(place.weight for place in tried) <= 1 + 1e-6


def crop_of_grain(seed, amplitude):
    """A small part of a weak mark in strong noise, not at the corner of a tile."""
    grain = 0.5 + 0.03 * torch.randn(1, 1, 192, 256, generator=torch.Generator().manual_seed(seed))
    pattern = KeyedExtractor(KEY).pattern(BITS, (205, 283), pilot_share=0.7)[..., 13:, 27:]
    return (grain + amplitude * pattern).clamp(0, 1).expand(1, 3, -1, -1)[0]


@pytest.mark.parametrize("seed", [2, 8])
def test_a_weak_small_crop_gives_evidence(seed):
    reading = KeyedExtractor(KEY).read(crop_of_grain(seed, 0.0018), search=False)
    assert reading.log10_p < -4.5 and float((reading.bits == BITS).float().mean()) > 0.75


def test_the_pilot_counts_in_a_guess_and_not_in_a_p_value():
    finder = PilotSearch(crop_of_grain(2, 0.002)[None])
    extractor = KeyedExtractor(KEY)
    placed = [place for place in reader.places(finder, extractor.layer, 512, search=False) if place.pilot is not None]
    pilots = [place.pilot.log_p for place in placed]
    best = placed[pilots.index(min(pilots))]
    attempts = reader.Attempts(finder, extractor.layer)
    with_it, without = (attempts.attempt(replace(best, pilot=pilot)) for pilot in (best.pilot, None))
    assert with_it.total_log10_p == pytest.approx(without.total_log10_p, abs=1)  # the shift differs by a little
    assert with_it.likely == pytest.approx(with_it.log10_p - math.log10(best.weight) + min(pilots) / math.log(10))
    assert without.likely == pytest.approx(without.log10_p - math.log10(best.weight))


@pytest.mark.parametrize(
    ("change", "rotation", "scale", "flipped"),
    [
        (lambda x: rotated(x, 33), 33, 1, False),
        (lambda x: rotated(resized(x, 360, 360), -14), -14, 360 / 512, False),
        (lambda x: rotated(x.flip(3), 20)[..., 60:450, 80:470], 20, 1, True),
        (lambda x: resized(x, 1024, 1024)[..., 200:900, 100:800], 0, 2, False),
        (lambda x: F.pad(resized(rotated(x, 5), 400, 400), (30, 50, 20, 60), value=1.0), 5, 400 / 512, False),
    ],
)
def test_reads_after_combined_changes(picture, change, rotation, scale, flipped):
    reading = KeyedExtractor(KEY).read(change(picture)[0])
    assert reading.detected and reading.num_bits == 48 and torch.equal(reading.bits, BITS)
    assert reading.pose.flipped == flipped
    assert reading.pose.scale == pytest.approx(scale, rel=0.004)
    assert math.remainder(reading.pose.rotation - rotation, 360) == pytest.approx(0, abs=0.3)


def test_reading_geometry_serves_logits(picture):
    received = rotated(picture, 33)
    extractor = KeyedExtractor(KEY)
    logits = extractor.logits(received, extractor.read(received[0]).geometry)
    assert torch.equal((logits[0] > 0).long(), BITS)


def test_unmarked_picture_reads_nothing_after_the_search():
    reading = KeyedExtractor(KEY).read(marked(320, amplitude=0.0)[0])
    assert not reading.detected and reading.tried > 10
    assert len(reading.bits) == reading.num_bits


def test_reads_a_large_picture_by_its_middle(monkeypatch):
    """Beyond `RECEIVED_SIDES` only the centre is read, and the shift is still that of the corner."""
    image = marked()
    expected = KeyedExtractor(KEY).read(image[0], search=False)
    monkeypatch.setattr(hypotheses, "RECEIVED_SIDES", (300, 300))
    for module in (views, reader):
        monkeypatch.setattr(module, "RECEIVED_SIDE", 300)
    found = KeyedExtractor(KEY).read(image[0], search=False)
    assert found.detected and found.log10_p > expected.log10_p
    for a, b in zip(found.pose.shift, expected.pose.shift, strict=True):
        assert abs((a - b + 32) % 64 - 32) < 1


def test_reads_pictures_in_perspective(picture):
    """A quarter larger at one side than at the other."""
    matrix = torch.tensor([[1.126, 0.035, -28], [-0.028, 1.084, -7], [2.8e-4, -1.4e-4, 1]], dtype=torch.float64)
    reading = KeyedExtractor(KEY).read(resample(picture, Geometry(matrix), (SIZE, SIZE))[0])
    assert reading.detected and float((reading.bits == BITS).float().mean()) > 0.9


def test_a_mark_in_colour_stands_out_of_grey_texture():
    mark = luma(marked(256) - marked(256, amplitude=0.0))
    texture = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(5))
    grey = 0.5 + F.avg_pool2d(0.2 * texture, 3, 1, 1).clamp(-0.3, 0.3)
    extractor = KeyedExtractor(KEY)
    as_grey, in_colour = (
        extractor.read((grey + mark * torch.tensor(colour)[:, None, None])[0], search=False)
        for colour in ((1.0, 1.0, 1.0), LUMA_COLOUR)
    )
    assert in_colour.log10_p < 2 * as_grey.log10_p
    assert torch.equal(in_colour.bits, BITS)


def test_the_reading_is_that_of_the_best_attempt():
    """A rate that no attempt reaches: all are made, and the last, at the working size, finds nothing."""
    reading = reader.read(marked(192), KeyedExtractor(KEY).layer, search=False, fpr=1e-99)
    assert not reading.detected and reading.tried >= 4
    assert reading.log10_p < -6 and torch.equal(reading.bits, BITS)
