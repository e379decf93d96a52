"""Clips: the watermark is a part of the scene, goes on where the scene does, and begins again where it ends."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from onrw_core.clip import Clip
from onrw_core.commands.marker import Marker
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.keyed.tile_average import half_tiles
from onrw_core.imaging.registration import Shift, translated
from onrw_core.models import Loaded
from onrw_core.payload.keys import Key
from onrw_core.payload.message import raw
from onrw_core.stages.noise_optimisation import Settings

from .stages.test_noise_optimisation import parts, scene  # noqa: F401  (parts is a fixture)

EXTRACTOR = KeyedExtractor(Key(bytes(range(32))), 32)
BITS = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(3))
SETTINGS = Settings(
    start_sigma=0.2, steps=1, iterations=4, attention_weight=0.0, quality=None, target_psnr=36.0, space="pixel"
)
STEP = 9  # pixels a frame


def embedded(parts, frames):  # noqa: F811
    model, autoencoder, _, positive, null = parts
    loaded = Loaded(model, autoencoder, lambda prompt: positive if prompt else null)
    options = {"extractor": EXTRACTOR, "key": None, "mask": None, "prompt": "a house", "size": 192, "seed": 0}
    return Marker(loaded, SETTINGS, **options).mark_clip(frames, Path("clip.mp4"), raw(BITS))


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.fixture(scope="module")
def frames():
    """A pan over one scene, then another scene."""
    whole, other = scene(192, 256 + 3 * STEP)[0], scene(256, 192)[0].transpose(1, 2)
    return [whole[..., STEP * i : STEP * i + 256] for i in range(4)] + [other.flip(1)]


@pytest.fixture(scope="module")
def marked(parts, frames):  # noqa: F811
    return list(embedded(parts, frames))


def test_the_watermark_moves_with_the_scene(frames, marked):
    residuals = [each.image - frame for each, frame in zip(marked, frames, strict=True)]
    for before, after in zip(residuals[:3], residuals[1:4], strict=True):
        followed, new = translated(before[None], Shift(-STEP, 0))
        inside = (new == 0).expand_as(followed)[0]
        assert alike(followed[0][inside], after[inside]) > 0.8
        assert alike(before, after) < 0.5
        assert (
            after[:, :, -STEP:].square().mean() > 0.3 * after.square().mean()
        )  # what came into view is marked as well
    assert [each.extractor.frame.apply(torch.zeros(2)).tolist() for each in marked[1:4]] == [
        [STEP * i, 0] for i in (1, 2, 3)
    ]
    assert all(each.psnr == pytest.approx(36, abs=0.1) for each in marked)


def test_any_frames_are_read_together(marked):
    for chosen in ([0, 1, 2], [1, 3], [2]):
        reading = EXTRACTOR.read(torch.stack([marked[i].image for i in chosen]), search=False)
        assert reading.detected and torch.equal(reading.bits, BITS)


def test_a_new_scene_begins_at_the_first_place(marked):
    last = marked[-1]
    assert last.iterations > marked[1].iterations
    assert last.extractor.place == marked[0].extractor.place and last.extractor.frame is None
    reading = EXTRACTOR.read(last.image, search=False)
    assert reading.detected and torch.equal(reading.bits, BITS)


def test_each_scene_keeps_its_own_watermarks(parts, frames, marked):  # noqa: F811
    """In a clip that is marked already."""
    model, autoencoder, *_ = parts
    first = replace(marked[0], extractor=marked[0].extractor.for_window(0, 0)._keeping(frames[0][None]))
    clip = Clip(frames[0], first, model, autoencoder, generator=torch.Generator().manual_seed(0), size=192)
    clip.mark(frames[1])
    assert clip.extractor.kept is first.extractor.kept
    clip.mark(frames[-1])
    there = half_tiles(first.extractor._rectified(frames[-1][None], None)).values
    assert alike(clip.extractor.kept.values, there) > 0.99 and alike(first.extractor.kept.values, there) < 0.5


def test_a_frame_has_a_mask_of_its_own(parts, frames, marked):  # noqa: F811
    model, autoencoder, *_ = parts
    clip = Clip(frames[0], marked[0], model, autoencoder, generator=torch.Generator().manual_seed(0), size=192)
    mask = torch.zeros(1, 1, *frames[1].shape[1:])
    mask[..., 100:] = 1
    for given in (mask, None):
        change = clip.mark(frames[1], given).image - (frames[1] * 255).round() / 255
        assert change[..., 100:].abs().max() > 1 / 512
        assert (change[..., :100].abs().max() > 1 / 512) == (given is None)
    with pytest.raises(ValueError, match="mask: is empty"):
        clip.mark(frames[1], mask * 0)


def test_frames_are_marked_one_by_one(parts, frames):  # noqa: F811
    taken = []

    def coming():
        for frame in frames[:2]:
            taken.append(frame)
            yield frame

    results = embedded(parts, coming())
    next(results)
    assert len(taken) == 1
    with pytest.raises(ValueError, match="one has 256x100 pixels and the first 256x192"):
        list(embedded(parts, [frames[0], frames[0][:, :100]]))
    assert list(embedded(parts, [])) == []
