"""Adversaries: what they estimate, and what their images are worth."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from onrw_core.attacks import parse
from onrw_core.bench import adversarial
from onrw_core.bench.adversarial import FORGED, KINDS, Adversary, table
from onrw_core.bench.adversary import (
    aligned_estimate,
    at_place,
    copied,
    estimated_tile,
    high_frequencies,
    rank_one,
    subtracted,
    tiled,
)
from onrw_core.bench.photos import Photo
from onrw_core.bench.systems import Onrw
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging.metrics import psnr
from onrw_core.imaging.rounding import round_8bit
from onrw_core.payload.keys import Key
from onrw_core.stages.noise_optimisation import PRESETS

KEY = Key(bytes(range(32)))
SIDE = 320  # pixels: of 25 tiles with different phases, an average keeps a 25th of the power of each


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(height, width, seed=0):
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0]


@dataclass
class Pixels(Onrw):
    """Marks by a few steps on the pixels."""

    def settings(self):
        return {"key": self.fingerprint, "name": self.name}

    def mark(self, photo, bits, generator):
        extractor = self.extractor.for_image(photo.image[None])
        delta = torch.zeros_like(photo.image, requires_grad=True)
        optimiser = torch.optim.Adam([delta], 0.005)
        for _ in range(8):
            optimiser.zero_grad()
            extractor.loss((photo.image + delta).clamp(0, 1)[None], bits).mean().backward()
            optimiser.step()
        return round_8bit((photo.image + delta).detach()), {"iterations": 8}


# Each case is a blind reading, and one in which nothing is found takes seconds.
FEWER = {
    "GAINS": (1.0, 2.0),
    "PRICES": (36.0,),
    "MEANWHILE": ("crop=.5",),
    "STRIPPED": ("crop=.9",),
    "ASKED": {"jpeg": (90.0, 1.0)},
    "QUESTIONS": 3,
    "FURTHER": 1,
    "suite": lambda name: [parse("jpeg=80"), parse("crop=.5")],
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _cases(tmp_path_factory.mktemp("out"), monkeypatch)


def _cases(out, monkeypatch):
    small = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    images = round_8bit(F.interpolate(small, size=SIDE, mode="bicubic") + 0.03 * noise(2, 3, SIDE, SIDE))
    for name, fewer in FEWER.items():
        monkeypatch.setattr(adversarial, name, fewer)
    photos = [Photo(name, image) for name, image in zip("ab", images, strict=True)]
    system = Pixels("ONRW", KeyedExtractor(KEY), PRESETS["fast"], SimpleNamespace(), SIDE, KEY.fingerprint)
    rows = Adversary(system, photos, KEY, 0, out).rows(photos[:1], [1, 2], KINDS, False)
    return {row["case"]: row for row in rows}


def test_estimates_neither_remove_nor_forge(cases):
    """Averages over tiles contain the public layer alone: every tile has its own keyed phases."""
    for gain in (1, 2):
        assert cases[f"own tile subtracted x{gain}"]["present"] == 1
        assert cases[f"own tile pasted elsewhere x{gain}"]["present"] == 0
    gentle, strong = (cases[f"own tile subtracted x{gain}"] for gain in (1, 2))
    assert gentle["psnr"] == pytest.approx(strong["psnr"] + 6, abs=0.5)
    assert cases["tile of 2 images subtracted x2"]["present"] == 1
    for ids in ("one id", "an id each"):
        case = cases[f"2 images, {ids}, aligned, subtracted at 36 dB"]
        assert case["present"] == 1 and case["psnr"] == pytest.approx(36, abs=0.2)


def test_without_the_public_layer_the_key_reads(cases):
    assert cases["nothing"]["public"] == 1
    stripped = cases["public layer subtracted, then crop=.9"]
    assert stripped["present"] == 1 and stripped["public"] == 0 and stripped["psnr"] is None


def test_a_reader_that_answers_is_asked_how_much_it_takes(cases):
    case = cases["reader asked 3 times, jpeg"]
    assert case["present"] == 0 and 20 < case["psnr"] < 40


def test_marks_live_side_by_side(cases):
    # A half of the small image has 12 tiles, and the further mark is as strong as the first.
    for name, least in (("marked by 1 further keys", 0.95), ("crop=.5, then marked by a further key", 0.9)):
        assert cases[name]["present"] == 1 and cases[name]["bit_accuracy"] > least, name
    assert cases["marked by 1 further keys, then onrw12"]["n"] == 2


def test_the_copy_attack_forges_and_is_told(cases):
    half, whole = (cases[f"high frequencies copied elsewhere x{gain}"] for gain in ("0.5", "1"))
    assert half["meaning"] == whole["meaning"] == FORGED
    assert whole["present"] == 1 and whole["copied"] == 1
    assert half["psnr"] == pytest.approx(whole["psnr"] + 6, abs=0.5)
    assert cases["no copy: onrw12"]["copied"] == 0 and cases["nothing"]["copied"] == 0


def test_table(cases):
    text = table({"marks": "quality 90", "preset": "quick", "size": SIDE, "cases": list(cases.values())})
    assert len(text.splitlines()) == len(cases) + 2 and "own tile pasted elsewhere x1 (forgery)" in text


def test_an_estimated_tile_is_the_repeated_one():
    tile = 0.02 * noise(3, 64, 64)
    image = smooth(256, 320) + tiled(tile, (256, 320))
    estimate = estimated_tile([image])
    assert F.cosine_similarity(estimate.flatten(), tile.flatten(), dim=0) > 0.9 and estimate.mean().abs() < 1e-6
    part = rank_one(image)
    assert F.cosine_similarity(part.flatten(), tiled(tile, (256, 320)).flatten(), dim=0) > 0.9


def test_rank_one_is_zero_outside_of_whole_tiles():
    part = rank_one(noise(3, 150, 200))
    assert part.shape == (3, 150, 200) and not part[:, 128:].any() and not part[..., 192:].any() and part.any()


def test_aligned_images_add_up():
    mark = 0.02 * noise(3, 256, 256)
    images = [smooth(256, 256, seed) + mark for seed in range(4)]
    place = (31, 30)  # across the edge of the pattern
    estimate = at_place(aligned_estimate(images, [place] * 4), images[0], place)
    assert F.cosine_similarity(estimate.flatten(), high_frequencies(mark).flatten(), dim=0) > 0.9
    shifted = aligned_estimate([images[0], images[1][:, 64:, 64:]], [(0, 0), (1, 1)])
    assert torch.equal(shifted[:, :64, :64], high_frequencies(images[0])[:, :64, :64])
    expected = (
        high_frequencies(images[0])[:, 128:192, 128:192] + high_frequencies(images[1][:, 64:, 64:])[:, 64:128, 64:128]
    ) / 2
    torch.testing.assert_close(shifted[:, 128:192, 128:192], expected)


def test_the_price_of_a_subtraction():
    image, estimate = smooth(64, 64), noise(3, 64, 64)
    assert psnr(subtracted(image, estimate, 36.0)[None], image[None]) == pytest.approx(36, abs=0.01)


def test_copied_frequencies_of_another_size():
    source, target = torch.rand(3, 40, 90), torch.rand(3, 64, 64)
    result = copied(source, target, 1.0)
    assert torch.equal(result[:, 40:], target[:, 40:]) and not torch.equal(result[:, :40], target[:, :40])
    assert torch.equal(copied(torch.full((3, 40, 90), 0.5), target, 1.0), target)  # what is flat adds nothing
