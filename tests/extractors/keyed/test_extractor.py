"""The keyed extractor: geometry handling, loss and plain reading."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.keyed.secret_layer import BIT_COUNTS
from onrw_core.imaging.geometry import Geometry, resample
from onrw_core.payload.keys import Key

SIZE = 256


def key(name: str) -> Key:
    return Key(hashlib.sha256(name.encode()).digest())


def picture(seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """A smooth random picture with edges and some grain, (1, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, size, size)
    for cells in (4, 16, 64):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image += F.interpolate(noise, size=(size, size), mode="bicubic") / cells**0.5
    image = image + torch.randn(1, 3, size, size, generator=generator) * 0.02
    return (0.5 + 0.15 * image).clamp(0.05, 0.95)


def message(num_bits: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 2, (num_bits,), generator=torch.Generator().manual_seed(seed))


def marked(
    extractor: KeyedExtractor, bits: torch.Tensor, image: torch.Tensor, amplitude: float = 0.02, steps: int = 12
):
    """A few sign-free gradient steps in pixel space, as strong as `amplitude` rms."""
    residual = torch.zeros_like(image).requires_grad_()
    optimiser = torch.optim.Adam([residual], lr=amplitude / 3)
    for _ in range(steps):
        optimiser.zero_grad()
        extractor.loss((image + residual).clamp(0, 1), bits).mean().backward()
        optimiser.step()
        with torch.no_grad():
            residual *= min(1.0, amplitude / float(residual.square().mean().sqrt()))
    return ((image + residual).detach().clamp(0, 1) * 255).round() / 255


@pytest.fixture(scope="module")
def extractor() -> KeyedExtractor:
    return KeyedExtractor(key("test"), 48)


@pytest.fixture(scope="module")
def mark(extractor) -> torch.Tensor:
    return marked(extractor, message(48), picture())


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a, b))


def test_refuses_other_bit_counts():
    with pytest.raises(ValueError, match="40"):
        KeyedExtractor(key("a"), 40)


FLIP = Geometry(torch.tensor([[-1.0, 0, SIZE], [0, 1, 0], [0, 0, 1]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "geometry", "least"),
    [
        (lambda x: x.rot90(1, (2, 3)), Geometry.rotation(90, (SIZE, SIZE)), 0.9999),
        (lambda x: x.flip(3), FLIP, 0.9999),
        (
            lambda x: resample(x, Geometry.rotation(20, (SIZE, SIZE)), (SIZE, SIZE)),
            Geometry.rotation(20, (SIZE, SIZE)),
            0.85,
        ),
        (lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True), Geometry.scale(2), 0.85),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True), Geometry.scale(0.5), 0.98),
        (lambda x: x[..., 20:230, 11:], Geometry.shift(11, 20), 0.85),
        (lambda x: x * 1.1 + 0.02, None, 0.98),
    ],
)
def test_tile_is_set_straight(extractor, mark, change, geometry, least):
    assert similarity(extractor.tile(change(mark), geometry), extractor.tile(mark)) > least


def test_fractional_shift_needs_no_resampling(extractor, mark):
    moved = resample(mark, Geometry.shift(0.5, 0.25), (SIZE, SIZE), mode="bicubic")
    assert similarity(extractor.tile(moved, Geometry.shift(0.5, 0.25)), extractor.tile(mark)) > 0.95


def test_loss_falls_along_its_gradient(extractor):
    image = picture(3).requires_grad_()
    loss = extractor.loss(image, message(48))
    assert loss.shape == (1,)
    (gradient,) = torch.autograd.grad(loss.sum(), image)
    assert torch.isfinite(gradient).all()
    step = image.detach() - 0.02 * gradient / gradient.square().mean().sqrt()
    assert float(extractor.loss(step, message(48))) < float(loss) - 0.05


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_image_of_one_colour_has_a_finite_loss(extractor, value):
    """As of a black frame, or of white paper whose mark an attack has clamped away."""
    image = torch.full((1, 3, SIZE, SIZE), value, requires_grad=True)
    loss, logits = extractor.loss_and_logits(image, message(48))
    (gradient,) = torch.autograd.grad(loss.sum(), image)
    assert torch.isfinite(loss).all() and torch.isfinite(logits).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("num_bits", BIT_COUNTS)
def test_reads_any_number_of_bits(num_bits):
    extractor = KeyedExtractor(key("n"), num_bits)
    bits = message(num_bits)
    reading = KeyedExtractor(key("n")).read(marked(extractor, bits, picture(), 0.03)[0], search=False)
    assert reading.num_bits == num_bits and reading.detected
    assert float((reading.bits == bits).float().mean()) > 0.97


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_plain_reading_finds_orientation_and_shift(extractor, mark, quarter, flip):
    received = mark.flip(3) if flip else mark
    received = received.rot90(quarter, (2, 3))[..., 5:, 9:]
    reading = extractor.read(received[0], search=False)
    assert reading.detected and reading.pose.flipped == flip
    assert torch.equal(reading.bits, message(48))
    assert torch.equal((extractor.logits(received, reading.geometry) > 0).long()[0], message(48))
    assert reading.pose.scale == pytest.approx(1, abs=1e-6)
    if not flip:
        assert (reading.pose.rotation - 90 * quarter) % 360 == pytest.approx(0, abs=1e-6)


def test_unmarked_and_wrong_key_read_nothing(extractor, mark):
    reading = extractor.read(picture(9)[0], search=False)
    assert not reading.detected and reading.bits.shape == (reading.num_bits,)
    assert not KeyedExtractor(key("other")).read(mark[0], search=False).detected


def test_reading_searches_unless_it_is_told_not_to(extractor, mark):
    turned = resample(mark, Geometry.rotation(20, (SIZE, SIZE)), (SIZE, SIZE))[0]
    reading = extractor.read(turned)
    assert reading.detected and reading.searched and torch.equal(reading.bits, message(48))
    assert not extractor.read(turned, search=False).detected


def test_the_frame_begins_at_the_place_of_the_extractor(extractor):
    bits, grain = message(48), torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    there = KeyedExtractor(extractor.key, 48, place=(5, 6))
    image = 0.5 + 0.01 * grain + 0.01 * there.pattern(bits, (128, 192))
    assert torch.equal((there.logits(image) > 0).long()[0], bits)
    for other in ((4, 6), (5, 5)):
        wrong = KeyedExtractor(extractor.key, 48, place=other).logits(image)
        assert float(((wrong > 0)[0] == bits).float().mean()) < 0.85
    crop = image[..., 64:, 64:]
    assert torch.equal((there.for_window(64, 64).logits(crop) > 0).long()[0], bits)


def test_read_refuses_batches_of_clips(extractor):
    with pytest.raises(ValueError, match="image: has shape"):
        extractor.read(picture()[None])
