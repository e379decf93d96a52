"""Watermarks of several keys in one image: one pilot, one label, and no key twice."""

import logging

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.base import AlreadyMarkedError
from onrw_core.extractors.keyed.extractor import KeyedExtractor, _likeness
from onrw_core.extractors.keyed.tile_average import HalfTiles, half_tiles
from onrw_core.imaging.geometry import Geometry, resample
from onrw_core.payload.keys import Key

FIRST, SECOND = (KeyedExtractor(Key(bytes([i]) * 32), 48) for i in (1, 2))
BITS = torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def grain() -> torch.Tensor:
    return 0.5 + 0.03 * torch.randn(1, 3, 256, 320, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def marked(grain) -> torch.Tensor:
    extractor = KeyedExtractor(FIRST.key, 48, "digitalCapture", (5, 6))
    return (grain + 0.015 * extractor.pattern(BITS, (256, 320), pilot_share=0.7)).clamp(0, 1)


def test_a_key_is_refused_where_it_is(grain, marked):
    with pytest.raises(AlreadyMarkedError, match=r"of this key already \(48 raw bits, .*--again"):
        FIRST.for_image(marked)
    turned = resample(marked, Geometry.rotation(4, (256, 320)), (256, 320), "bicubic")
    with pytest.raises(AlreadyMarkedError, match="already"):
        FIRST.for_image(turned)
    assert FIRST.for_image(marked, again=True).frame is not None
    assert FIRST.for_image(grain).frame is None


def test_another_key_takes_frame_and_label_of_the_first(marked, caplog):
    crop = marked[..., 21:, 37:]
    with caplog.at_level(logging.WARNING):
        second = SECOND.for_image(crop, "digitalCreation")
    assert second.label == "digitalCapture" and "not changed to digitalCreation" in caplog.text
    corner = second.frame.apply(torch.zeros(2))
    assert (corner - torch.tensor([37, 21]) + 32).remainder(64).tolist() == pytest.approx([32, 32], abs=0.3)
    # A gradient step of the second leaves the first, and the pilot is where it was.
    residual = torch.zeros_like(crop).requires_grad_()
    loss = second.loss(crop + residual, BITS).sum()
    (gradient,) = torch.autograd.grad(loss, residual)
    step = 0.008 * gradient / gradient.square().mean().sqrt()
    reading = FIRST.read((crop - step)[0].clamp(0, 1), search=False)
    assert reading.detected and torch.equal(reading.bits, BITS)
    assert float(second.loss(crop - step, BITS)) < float(loss.detach()) - 0.1


@pytest.mark.parametrize("label", ["none", None])
def test_the_loss_keeps_the_watermarks_that_are_there(marked, label):
    """The gradient of the loss without `kept` would reduce the half tiles of the image; with it, it does not."""
    crop = marked[..., 21:, 37:]
    second = SECOND.for_image(crop, label)
    careless = KeyedExtractor(second.key, 48, second.label, second.place, second.frame)
    likeness = []
    for extractor in (second, careless):
        image = crop.clone().requires_grad_()
        for _ in range(8):
            (gradient,) = torch.autograd.grad(extractor.loss(image, BITS).sum(), image)
            image = (image - 0.004 * gradient / gradient.square().mean().sqrt()).detach().requires_grad_()
        likeness.append(float(_likeness(half_tiles(second._rectified(image.detach(), None)), second.kept)))
    assert likeness[0] > likeness[1] + 0.05


def test_only_a_marked_image_is_kept(grain, marked):
    assert SECOND.for_image(grain).kept is None and SECOND.for_image(grain, None).kept is None
    second = SECOND.for_image(marked)
    assert second.kept is not None
    assert second.for_window(64, 128).kept is second.kept and second.for_bits(32).kept is second.kept
    # Another scene of a clip has its own content; one of the same key is not kept.
    scene = second.for_scene(marked.flip(3))
    assert scene.kept.values.shape == second.kept.values.shape and float(_likeness(scene.kept, second.kept)) < 0.5
    assert second.kept is not None and SECOND.for_scene(marked).kept is None
    assert FIRST.for_image(marked, again=True).kept is None


def test_a_strip_is_kept_to_its_ends():
    grain = 0.5 + 0.03 * torch.randn(1, 3, 128, 4608, generator=torch.Generator().manual_seed(1))
    strip = grain + 0.02 * FIRST.pattern(BITS, (128, 4608), pilot_share=0.7)
    kept = SECOND.for_image(strip.clamp(0, 1)).kept
    assert kept.values.shape[2] >= 4608 // 32


def test_half_tiles_are_compared_where_both_are(marked):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(1, 6, 8, 364, generator=generator)
    whole = HalfTiles(values, 10, 20)
    assert float(_likeness(whole, whole)) == pytest.approx(1)
    part = HalfTiles(values[:, 2:, 3:6], 12, 23)
    assert float(_likeness(part, whole)) == pytest.approx(1) == float(_likeness(whole, part))
    moved = HalfTiles(values, 12, 21)
    expected = F.cosine_similarity(values[:, :4, :7].flatten(1), values[:, 2:, 1:].flatten(1))
    assert float(_likeness(moved, whole)) == pytest.approx(float(expected))
    for row, column in ((16, 20), (4, 20), (10, 28), (0, 0), (40, 50)):
        assert float(_likeness(HalfTiles(values, row, column), whole)) == 0


def test_windows_continue_the_pattern(marked):
    plain = KeyedExtractor(FIRST.key, 48, place=(31, 2))
    assert plain.for_window(64, 128).place == (32, 4)
    second = SECOND.for_image(marked)
    window = second.for_window(64, 128)
    assert torch.allclose(window.frame.apply(torch.zeros(2)), second.frame.apply(torch.tensor([128.0, 64.0])))


def test_without_a_public_layer_nothing_is_taken(marked, caplog):
    with caplog.at_level(logging.WARNING):
        second = SECOND.for_image(marked, None)
    assert second.frame is None and second.label is None
    assert "public layer, which stays" in caplog.text
