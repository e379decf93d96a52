"""Images that are marked in windows: no seams, one message, bounded memory."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from onrw_core import pipeline
from onrw_core.bench.footprint import Footprint
from onrw_core.diffusion.model import Autoencoder
from onrw_core.extractors.base import AlreadyMarkedError
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging import strips
from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.geometry import Geometry
from onrw_core.imaging.metrics import ssim
from onrw_core.imaging.ssimulacra2 import Ssimulacra2
from onrw_core.payload.keys import Key
from onrw_core.pipeline import Denoised, embed
from onrw_core.stages import working_image
from onrw_core.stages.composition import CompositionOptions, compose
from onrw_core.stages.noise_optimisation import Settings
from onrw_core.stages.working_image import windows

from .stages.test_noise_optimisation import parts, scene  # noqa: F401  (parts is a fixture)

SIZE = (192, 1024)
BLOCK = 8  # pixels of the test model's latent; its decoder leaves steps at their edges


@contextmanager
def small_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working_image, "WHOLE_PIXELS", 2**16)
        patch.setattr(working_image, "WINDOW_SIDE", 448)
        yield


@pytest.fixture(scope="module")
def extractor():
    return KeyedExtractor(Key(bytes(range(32))), 32)


@pytest.fixture(scope="module")
def bits():
    return torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(3))


def embedded(parts, extractor, bits, image, on_state=None, size=SIZE[0], mask=None, **changes):  # noqa: F811
    model, autoencoder, _, positive, null = parts
    settings = Settings(start_sigma=0.2, steps=1, iterations=2, attention_weight=0.0, quality=None, target_psnr=38.0)
    return embed(
        image,
        model,
        autoencoder,
        extractor,
        bits,
        positive=positive,
        null=null,
        settings=settings.with_(**changes),
        generator=torch.Generator().manual_seed(0),
        size=size,
        mask=mask,
        on_state=on_state,
    )


@pytest.fixture(scope="module")
def marked(parts, extractor, bits):  # noqa: F811
    """A panorama marked in windows, the panorama, the states of the optimisation."""
    image, states = scene(*SIZE)[0], []
    with small_windows():
        return embedded(parts, extractor, bits, image, states.append), image, states


def test_the_windows_count_on(marked):
    result, _, states = marked
    assert len(result.watermarks) == 3 and result.iterations == 6
    assert [(state.iteration, state.total) for state in states] == [(i, 6) for i in range(1, 7)]
    assert result.psnr == pytest.approx(38, abs=0.05)


def test_every_part_carries_the_message_in_one_frame(marked, extractor, bits):
    """Crops as wide as a window, wherever they lie: those between two windows as well."""
    result, image, _ = marked
    assert extractor.read(result.image).detected and not extractor.read(image).detected
    extractor = extractor.for_image(image[None])  # the image's place in the pattern
    for left in range(0, SIZE[1] - 191, 64):
        crop = result.image[None, ..., left : left + 192]
        read = extractor.logits(crop, Geometry.shift(left, 0))[0] > 0
        assert (read == bits.bool()).float().mean() >= 0.97, left


def test_no_seams(marked):
    """The change is as continuous at the ends of windows as at the edges of other blocks, and as strong beside them."""
    result, image, _ = marked
    change = (result.image - image).mean(0)
    with small_windows():
        parts = windows(*SIZE)
    ends = {x for part in parts for x in (part.left, part.left + part.width) if 0 < x < SIZE[1]}
    steps = {x: (change[:, x] - change[:, x - 1]).abs().mean() for x in range(BLOCK, SIZE[1], BLOCK)}
    others = torch.stack([step for x, step in steps.items() if x not in ends])
    assert len(ends) == 4
    for x in ends:
        assert steps[x] < others.mean() + 2 * others.std()
        strength = change[:, x - 32 : x + 32].square().mean().sqrt()
        assert float(strength) == pytest.approx(float(change.square().mean().sqrt()), rel=0.3)


class Smooth(Autoencoder):
    """An autoencoder whose decoded images have no steps of their own."""

    def __init__(self, autoencoder):
        self.inner = autoencoder
        self.name, self.factor, self.channels = autoencoder.name, autoencoder.factor, autoencoder.channels

    def encode(self, images):
        return self.inner.encode(images)

    def decode(self, latents):
        return gaussian_blur(self.inner.decode(latents), 4)


def test_one_window_passes_gradually_into_the_next(parts, extractor, bits):  # noqa: F811
    """No column where the change takes a step, as it would where one window is cut off and the next begins."""
    model, autoencoder, *prompts = parts
    image = scene(192, 768)[0]
    with small_windows():
        result = embedded((model, Smooth(autoencoder), *prompts), extractor, bits, image, visibility=False)
        first, second = windows(192, 768)
    step = (result.image - image).mean(0).diff(dim=1).square().mean(0).sqrt()
    shared = slice(second.left, first.width)  # where the windows overlap
    apart = torch.cat([step[: shared.start], step[shared.stop :]])
    assert step[shared].max() < apart.max()  # 1.2 and 1.6 times the mean step; cut off in the middle, 4.8


def test_windows_are_in_balance():
    """However strong the decoder made the change of a window, its own composition says how strong it goes in."""
    image = scene(128, 192)
    change = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    settings = Settings(start_sigma=0.2, steps=1, visibility=False)
    changes = []
    for strength in (0.01, 0.2):
        denoised = Denoised(torch.zeros(1), image + strength * change, image, None)
        scaled = pipeline._at_its_limit(denoised, image, settings)
        changes.append(scaled.decoded - scaled.decoded_original)
    assert changes[0].std() == pytest.approx(float(changes[1].std()), rel=0.02)


def test_memory_does_not_grow_with_the_number_of_windows(parts, extractor, bits, monkeypatch):  # noqa: F811
    """Twenty-four tiles in a row, as one window and in five: what is held at most, all tensors counted."""
    monkeypatch.setattr(strips, "PIXELS", 2**14)
    image, little = scene(192, 1536)[0], {"iterations": 1, "warm_steps": 1, "attacks": 1, "mix": "none"}
    with Footprint() as whole:
        embedded(parts, extractor, bits, image, **little)
    with small_windows(), Footprint() as windowed:
        embedded(parts, extractor, bits, image, **little)
    assert windowed.peak < 0.6 * whole.peak


def test_composition_and_its_figures_hold_a_few_images_at_most(monkeypatch):
    monkeypatch.setattr(strips, "PIXELS", 2**14)
    original = scene(768, 1152)
    below = F.interpolate(original, scale_factor=1 / 8, mode="bilinear")
    decoded = below + 0.05 * torch.randn(below.shape, generator=torch.Generator().manual_seed(0))
    with Footprint() as composing:
        result = compose(original, decoded, below, CompositionOptions(luma_only=True))
    assert composing.peak < 4 * original.nbytes
    with Footprint() as measuring:
        ssim(result.image, original)
    assert measuring.peak < 4 * original.nbytes


def test_the_score_is_computed_in_strips(monkeypatch):
    """Beside what is kept of the original, less than one image, the marked one's planes included."""
    monkeypatch.setattr(strips, "PIXELS", 2**14)
    original = scene(768, 1152)
    with Footprint() as setting_up:
        score = Ssimulacra2(original)
    assert setting_up.peak < setting_up.bytes + 0.75 * original.nbytes
    marked = 0.99 * original
    with Footprint() as scoring, torch.no_grad():
        score(marked)
    assert scoring.peak < setting_up.bytes + original.nbytes


def test_composition_to_a_quality_holds_the_judge_beside_a_few_images(monkeypatch):
    monkeypatch.setattr(strips, "PIXELS", 2**14)
    original = scene(768, 1152)
    below = F.interpolate(original, scale_factor=1 / 8, mode="bilinear")
    decoded = below + 0.05 * torch.randn(below.shape, generator=torch.Generator().manual_seed(0))
    with Footprint() as composing:
        compose(original, decoded, below, CompositionOptions(quality=90, luma_only=True))
    assert composing.peak < 6.5 * original.nbytes


def area(kind: str, height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    if kind == "disk":
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        mask[0, 0] = ((y - 90) ** 2 + (x - 110) ** 2 < 60**2).float()
    elif kind == "line":
        mask[..., 71, :] = 1
    elif kind == "pixel":
        mask[..., 82, 97] = 1
    else:
        mask[0, 0] = (torch.rand(height, width, generator=torch.Generator().manual_seed(5)) < 0.05).float()
    return mask


@pytest.mark.parametrize("kind", ["disk", "line", "pixel", "grains"])
def test_nothing_outside_of_a_mask_changes_where_the_working_image_is_smaller(parts, extractor, bits, kind):  # noqa: F811
    image, mask = scene(192, 256)[0], area(kind, 192, 256)
    marked = embedded(parts, extractor, bits, image, size=96, mask=mask, target_psnr=30.0)
    change = (marked.image - image).abs().amax(0)
    assert float(change[mask[0, 0] == 0].max()) == 0
    assert kind == "pixel" or float(change.max()) > 0


def test_a_mark_of_the_same_key_is_seen_at_the_size_of_the_image(parts, extractor, bits):  # noqa: F811
    image = scene(256, 320)[0]
    pattern = extractor.pattern(bits, (256, 320), pilot_share=0.7)
    image = (image + 0.02 * pattern).clamp(0, 1)
    size = 72  # at which the pattern cannot be seen
    with pytest.raises(AlreadyMarkedError):
        embedded(parts, extractor, bits, image, size=size)
    embedded(parts, extractor, bits, image, size=size, again=True)
