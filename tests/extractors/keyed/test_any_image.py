"""No image makes the reader fail: flat, periodic, tiny, extreme ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.keyed.pilot_search import PilotSearch, detect
from onrw_core.extractors.keyed.reader import Attempts, Place
from onrw_core.imaging.geometry import Geometry
from onrw_core.imaging.pixels import as_rgb
from onrw_core.payload.keys import Key

EXTRACTOR = KeyedExtractor(Key(bytes(range(32))))


def grid(height, width):
    return torch.meshgrid(torch.arange(height) * 1.0, torch.arange(width) * 1.0, indexing="ij")


def constant(height, width, a, b):
    return torch.full((height, width), a)


def gradient(height, width, a, b):
    y, x = grid(height, width)
    return (a * x + b * y) / (height + width)


def checkerboard(height, width, a, b):
    y, x = grid(height, width)
    side = 1 + int(a * 70)
    return ((x // side + y // side) % 2) * (b if b > 0.01 else 1.0)


def moire(height, width, a, b):
    y, x = grid(height, width)
    return 0.5 + 0.5 * torch.sin(a * (x * x + y * y) / (1 + 100 * b))


def rings(height, width, a, b):
    y, x = grid(height, width)
    return 0.5 + 0.25 * (torch.hypot(x, y) * a).sin() + 0.25 * (torch.hypot(x - width, y) * a * (1 + b / 10)).sin()


def lattice(height, width, a, b):
    """The periods of marks, turned: what the search looks for."""
    y, x = grid(height, width)
    period = 64 / (1 + round(9 * a)) * (0.9 + 0.2 * b)
    angle = b * math.pi
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return 0.5 + 0.25 * (2 * math.pi * u / period).sin() + 0.25 * (2 * math.pi * v / period).sin()


def one_pixel(height, width, a, b):
    image = torch.zeros(height, width)
    image[int(a * (height - 1)), int(b * (width - 1))] = 1
    return image


def frame(height, width, a, b):
    """Noise around a flat middle."""
    image = torch.rand(height, width, generator=torch.Generator().manual_seed(int(a * 1000)))
    m = int(min(height, width) * b / 2)
    image[m : height - m, m : width - m] = 0.5
    return image


def huge_values(height, width, a, b):
    return (torch.rand(height, width, generator=torch.Generator().manual_seed(3)) - 0.5) * 10 ** (30 * a)


KINDS = [constant, gradient, checkerboard, moire, rings, lattice, one_pixel, frame, huge_values]
SIDES = st.one_of(st.integers(1, 20), st.integers(20, 200), st.sampled_from([63, 64, 65, 127, 128, 129]))
UNIT = st.floats(0, 1)


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(KINDS), SIDES, SIDES, UNIT, UNIT, st.booleans())
def test_any_image_is_read(kind, height, width, a, b, coloured):
    plane = kind(height, width, a, b)
    image = torch.stack([plane, plane.flip(-1), 1 - plane]) if coloured else plane.expand(3, -1, -1)
    reading = EXTRACTOR.read(image)
    assert not reading.detected and reading.log10_p <= 0 and math.isfinite(reading.log10_p)
    assert reading.logits.isfinite().all()
    found = detect(as_rgb(image)[None])
    assert not found.found and found.label is None and found.log10_p <= 0


def test_a_refinement_without_tiles_leaves_the_attempt():
    """The middle of 256 pixels is flat; the attempt was made with what is around it."""
    image = frame(768, 768, 0.0, 0.25).expand(1, 3, -1, -1)
    attempts = Attempts(PilotSearch(image), EXTRACTOR.layer)
    attempt = attempts.attempt(Place(0, Geometry.identity(), 1.0, 2048, False))
    refined = attempts.refine(attempt, 256)
    assert torch.equal(refined.tile, attempt.tile) and refined.log10_p == attempt.log10_p and refined.still


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(value):
    image = torch.rand(3, 64, 64)
    image[1, 5, 5] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        EXTRACTOR.read(image)


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (4, 64, 64), (1, 4, 64, 64), (1, 1, 3, 64, 64), (3, 0, 64)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        EXTRACTOR.read(torch.zeros(shape))


@pytest.mark.parametrize("fpr", [0.0, 1.0, -1e-6, math.nan, 2])
def test_rates_that_are_none_are_refused(fpr):
    with pytest.raises(ValueError, match="fpr"):
        EXTRACTOR.read(torch.rand(3, 64, 64), fpr=fpr)
