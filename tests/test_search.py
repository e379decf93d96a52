"""The blind search on synthetic marks: a periodic pattern under noise, turned, scaled, stretched and cut."""

import math

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors import looks, proposals, reader
from onrw_core.extractors.carriers import Carriers, band_basis
from onrw_core.extractors.folding import shifted
from onrw_core.extractors.frame import straighten
from onrw_core.extractors.keyed import KeyedExtractor
from onrw_core.extractors.polish import blocks, polished
from onrw_core.extractors.search import ASPECTS, candidates, levels, on_lines
from onrw_core.extractors.whitening import whiten
from onrw_core.geometry import Geometry, resample
from onrw_core.keys import Key
from onrw_core.metrics import LUMA_COLOUR

SIZE = 512
KEY = Key(bytes(range(32)))
BITS = torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(4))


def marked(size: int = SIZE, amplitude: float = 0.012) -> torch.Tensor:
    """A smooth random picture plus sync and payload as strong as `amplitude` rms, (1, 3, size, size)."""
    carriers = Carriers.from_key(KEY)
    pattern = carriers.sync_for(48) + ((BITS * 2.0 - 1) @ carriers.payload[:48].float() / 48**0.5)
    tile = (band_basis() @ pattern).float().reshape(64, 64)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, size, size, generator=generator) * 0.01 + 0.5
    for cells in (4, 16, 64):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image = image + 0.06 * F.interpolate(noise, size=(size, size), mode="bicubic") / cells**0.3
    image = image + amplitude * (tile / tile.square().mean().sqrt()).repeat(size // 64, size // 64)
    return (image.clamp(0, 1) * 255).round() / 255


def rotated(x, degrees):
    return resample(x, Geometry.rotation(degrees, x.shape[-2:]), x.shape[-2:])


def resized(x, height, width):
    return F.interpolate(x, size=(height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


@pytest.fixture(scope="module")
def picture():
    return marked()


def luma(x):
    return x.mean(1, keepdim=True)


def relation(candidate, truth):
    """How far two linear maps are from each other, up to quarter turns and flips."""
    product = candidate.linear @ torch.linalg.inv(truth)
    return float((product - product.round()).abs().max())


@pytest.mark.parametrize(
    ("degrees", "scale", "level"), [(0, 1.0, 0), (17, 1.0, 0), (-40, 0.6, 0), (71, 1.2, 0), (8, 2.4, 1)]
)
def test_comb_gives_rotation_and_scale(picture, degrees, scale, level):
    turned = rotated(picture, degrees)
    received = resized(turned, round(SIZE * scale), round(SIZE * scale))
    best = candidates(levels(luma(received))[level])[0]
    truth = (Geometry.rotation(degrees, (SIZE, SIZE)) @ Geometry.scale(SIZE / received.shape[-1])).matrix[:2, :2]
    assert best.score > 8
    assert relation(best, truth) < 0.006


def test_aspect_templates_give_aspect(picture):
    received = rotated(resized(picture, SIZE, 476), 20)
    truth = (Geometry.scale(SIZE / 476, 1) @ Geometry.rotation(20, (SIZE, 476))).matrix[:2, :2]
    best = candidates(levels(luma(received))[0], ASPECTS[1:])[0]
    assert relation(best, truth) < 0.008


@pytest.mark.parametrize(("width", "height"), [(400, SIZE), (SIZE, 436)])
def test_reads_squeezed_pictures(picture, width, height):
    reading = KeyedExtractor(KEY).read(resized(picture, height, width)[0])
    assert reading.detected and torch.equal(reading.bits, BITS)


def test_lines_hold_small_crops_that_were_only_turned_or_only_resized(picture):
    crop = picture[..., 70:280, 100:310]
    for received, truth in (
        (rotated(crop, 23), Geometry.rotation(23, (210, 210))),
        (resized(crop, 126, 126), Geometry.scale(210 / 126)),
    ):
        found = on_lines(levels(luma(received))[0])
        assert len(found) <= 8
        assert min(relation(c, truth.matrix[:2, :2]) for c in found) < 0.012


def test_weights_of_all_attempts_are_one_at_most(picture):
    _, weights, searched = reader.attempt_tiles(picture[..., :160, :200])
    assert searched.any() and 0.5 < float(weights.sum()) <= 1 + 1e-6


def test_unmarked_picture_has_no_strong_comb():
    scores = [c.score for level in levels(luma(marked(amplitude=0.0))) for c in candidates(level)]
    assert max(scores) < 7


def test_polish_corrects_affine_and_perspective(picture):
    error = Geometry(torch.tensor([[1.004, 0.003, 1], [-0.003, 0.998, -2], [1e-5, -1e-5, 1]], dtype=torch.float64))
    w = whiten(luma(resample(picture, error, (SIZE, SIZE), mode="bicubic")))
    tiles, centres = blocks(w, None)
    found, gain = polished(tiles, centres, Carriers.from_key(KEY).sync_for(48).float(), perspective=True)
    corners = torch.tensor([[64.0, 64], [448, 64], [64, 448], [448, 448]])
    before = (error.apply(corners) - corners).norm(dim=1).max()
    after = (found.apply(corners) - error.apply(corners)).norm(dim=1).max()
    assert before > 4 and after < 0.7 and gain > 1.05


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
    assert reading.flipped == flipped
    assert reading.scale == pytest.approx(scale, rel=0.004)
    assert math.remainder(reading.rotation - rotation, 360) == pytest.approx(0, abs=0.3)


def test_reading_geometry_serves_logits(picture):
    received = rotated(picture, 33)
    extractor = KeyedExtractor(KEY)
    logits = extractor.logits(received, extractor.read(received[0]).geometry)
    assert torch.equal((logits[0] > 0).long(), BITS)


def test_unmarked_picture_reads_nothing_after_the_search():
    reading = KeyedExtractor(KEY).read(marked(320, amplitude=0.0)[0])
    assert not reading.detected and reading.tried > 10
    assert len(reading.bits) == reading.num_bits


def test_shifted_moves_tiles():
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(364, generator=generator)
    assert torch.allclose(shifted(shifted(tile, 3.3, -1.2), -3.3, 1.2), tile, atol=1e-5)
    assert torch.allclose(shifted(tile, 64.0, -128.0), tile, atol=1e-4)


def test_reads_a_large_picture_by_its_middle(monkeypatch):
    """Beyond `PLAIN_SIDES` only the middle is looked at, and the shift is still that of the corner."""
    image = marked()
    expected = KeyedExtractor(KEY).read(image[0], search=False)
    monkeypatch.setattr(proposals, "PLAIN_SIDES", (300, 300))
    for module in (looks, reader):
        monkeypatch.setattr(module, "PLAIN_SIDE", 300)
    found = KeyedExtractor(KEY).read(image[0], search=False)
    assert found.detected and found.log10_p > expected.log10_p
    for a, b in zip(found.shift, expected.shift, strict=True):
        assert abs((a - b + 32) % 64 - 32) < 1


def test_large_pictures_are_averaged_before_they_are_resampled(picture):
    large = resized(picture, 8 * SIZE, 8 * SIZE)
    straight = straighten(luma(large), Geometry.scale(1 / 8))
    assert straight.y.shape[-2:] == (SIZE, SIZE)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (straight.y[inner] - luma(picture)[inner]).abs().mean() < 0.01


def test_quarter_turns_of_large_pictures_are_drawn_in_the_middle():
    y = torch.rand(1, 1, 90, 130, generator=torch.Generator().manual_seed(0))
    turn = Geometry(torch.tensor([[0.0, -1, 90], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))
    whole, middle = straighten(y, turn), straighten(y, turn, limit=40)
    x0, y0 = int(middle.x0 - whole.x0), int(middle.y0 - whole.y0)
    assert middle.y.shape[-2:] == (40, 40) and (x0, y0) == (25, 45)
    assert torch.equal(middle.y, whole.y[..., y0 : y0 + 40, x0 : x0 + 40])


def test_a_stretch_along_a_diagonal_is_found_whole(picture):
    """It has no template, and every second point of its lattice looks like a rotation with a stretch along the axes."""
    stretch = torch.eye(3, dtype=torch.float64)
    stretch[:2, :2] = torch.tensor([[1.0, 0.09], [0.09, 1.0]])
    middle = Geometry.shift(SIZE / 2, SIZE / 2)
    truth = middle @ Geometry(stretch) @ middle.inverse()
    received = resample(picture, truth, (SIZE, SIZE))
    best = candidates(levels(luma(received))[0], ASPECTS)[0]
    product = best.linear @ torch.linalg.inv(truth.matrix[:2, :2])
    assert relation(best, truth.matrix[:2, :2]) < 0.01
    assert abs(abs(float(torch.linalg.det(product))) - 1) < 0.02


def test_reads_pictures_in_perspective(picture):
    """A quarter larger at one side than at the other."""
    matrix = torch.tensor([[1.126, 0.035, -28], [-0.028, 1.084, -7], [2.8e-4, -1.4e-4, 1]], dtype=torch.float64)
    reading = KeyedExtractor(KEY).read(resample(picture, Geometry(matrix), (SIZE, SIZE))[0])
    assert reading.detected and torch.equal(reading.bits, BITS)


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
