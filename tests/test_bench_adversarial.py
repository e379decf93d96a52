"""What an adversary does to marks: every case is there, and the figures are those of the pictures."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from onrw_core.bench.adversarial import adversarial
from onrw_core.bench.cache import Cache
from onrw_core.bench.marking import marked
from onrw_core.bench.photos import Photo
from onrw_core.bench.systems import Onrw, Outcome
from onrw_core.extractors.keyed import KeyedExtractor
from onrw_core.keys import Key
from onrw_core.optimise import PRESETS
from onrw_core.rounding import round_8bit

KEY = Key(bytes(range(32)))


@dataclass
class Pixels(Onrw):
    """Marks by a few steps on the pixels, and reads the picture as it is."""

    def settings(self):
        return {"key": self.fingerprint, "space": self.settings_.space}

    def mark(self, photo, bits, generator):
        delta = torch.zeros_like(photo.image, requires_grad=True)
        optimiser = torch.optim.Adam([delta], 0.01)
        for _ in range(8):
            optimiser.zero_grad()
            self.extractor.loss((photo.image + delta).clamp(0, 1)[None], bits).mean().backward()
            optimiser.step()
        return round_8bit((photo.image + delta).detach()), {"iterations": 8}

    def read(self, image, original_size):
        reading = self.extractor.read(image, search=False)
        logits = reading.logits if reading.detected else self.extractor.guess(reading)
        return Outcome((logits > 0).long(), logits, reading.log10_p, 0.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 16, 16, generator=generator) * 0.6 + 0.2
    images = round_8bit(F.interpolate(small, size=192, mode="bicubic"))
    photos = [Photo(name, image) for name, image in zip("ab", images, strict=True)]
    system = Pixels("ONRW", KeyedExtractor(KEY, 48), PRESETS["fast"], SimpleNamespace(), 192, KEY.fingerprint)
    cache = Cache(tmp_path_factory.mktemp("out"), system, 0)
    for photo in photos:
        marked(system, cache, photo, KEY, 0)
    found = adversarial(system, cache, photos, KEY, 0)
    return {case["case"]: case for case in found}, cache


def test_every_case_is_counted(cases):
    found = cases[0]
    assert all(case["n"] == 2 and 0 <= case["present"] <= 1 for case in found.values())
    assert found["marked again with another key: second mark"]["present"] == 1
    assert found["pixels optimised with the key in hand"]["present"] == 1


def test_estimates_remove_and_forge(cases):
    found = cases[0]
    gentle, strong = (found[f"own tile subtracted x{gain}"] for gain in (1, 2))
    assert gentle["bit_accuracy"] < 0.9 and gentle["psnr"] == pytest.approx(strong["psnr"] + 6, abs=0.5)
    assert found["own tile pasted elsewhere x2"]["bit_accuracy"] > 0.8  # no key was needed for that
    for ids in ("one id", "an id each"):
        assert found[f"tile of 2 photos, {ids}, subtracted x2"]["psnr"] < gentle["psnr"]


def test_the_second_key_has_one_message(cases):
    (folder,) = cases[1].folder.parent.glob("onrw-second-key-*")
    assert len({json.loads((folder / f"{name}.json").read_text())["bits"] for name in "ab"}) == 1
