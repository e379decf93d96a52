"""Robustness of a message under random attacks, and its forecast before the work."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging.files import load
from onrw_core.payload.keys import Key
from onrw_core.stages.composition import Composer, CompositionOptions
from onrw_core.stages.robustness import Robustness, robustness, tell_if_weak
from onrw_core.stages.working_image import working_image

MONUMENT = Path(__file__).parents[2] / "onrw_core" / "samples" / "monument.jpg"
SIDE = 256
BITS = torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def extractor():
    return KeyedExtractor(Key(bytes(range(32))), 48)


def photo():
    return working_image(load(MONUMENT).rgb, SIDE)


def line_drawing():
    """Thin black lines on white."""
    image, rng = Image.new("L", (SIDE, SIDE), 255), random.Random(1)
    draw = ImageDraw.Draw(image)
    for _ in range(10):
        draw.line([(rng.randrange(SIDE), rng.randrange(SIDE)) for _ in range(2)], fill=0, width=2)
    plane = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() / 255
    return plane.reshape(1, 1, SIDE, SIDE).expand(1, 3, SIDE, SIDE).contiguous()


def told(extractor, image, **options):
    """What a user is told of an image before the work, a list of at most one forecast."""
    heard = []
    composer = Composer(image, CompositionOptions(luma_only=True, **options))
    weak = tell_if_weak(composer, extractor.for_image(image), BITS, heard.append)
    assert weak == bool(heard)
    return heard


def test_a_photo_has_room_for_a_watermark_and_a_line_drawing_has_little(extractor):
    assert not told(extractor, photo(), quality=80.0)
    (forecast,) = told(extractor, line_drawing(), quality=90.0)
    assert 0.5 < forecast.bits < 0.93


def test_no_forecast_without_a_quality_or_residual(extractor):
    assert not told(extractor, line_drawing(), target_psnr=45.0)
    assert not told(extractor, line_drawing(), quality=90.0, mode="mask")


def test_an_unmarked_image_has_half_of_the_bits_right(extractor):
    found = robustness(photo(), extractor, BITS)
    assert found.weak and 0.35 < found.bits < 0.65
    assert found == robustness(photo(), extractor, BITS)


def test_the_text_names_the_worst_attacks_once():
    found = Robustness((("jpeg", 0.7), ("jpeg", 0.5), ("crop", 1.0), ("noise", 0.9), ("blur", 0.8)))
    assert found.bits == pytest.approx(0.78) and found.weak
    assert str(found).startswith("78% of the bits")
    assert str(found).endswith("50% after jpeg, 80% after blur, 90% after noise")
