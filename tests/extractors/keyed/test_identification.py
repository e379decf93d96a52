"""One of many: the registered id is found where the message is not, chance is counted, otherwise nothing is found."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.keyed.identification import identify, soft_match_log10_p, word_size
from onrw_core.imaging.files import load, save
from onrw_core.payload.keys import Key
from onrw_core.payload.message import decode, encode_id
from onrw_core.payload.registry import Registry

from ...commands.test_cli import onrw, photo  # noqa: F401  (onrw is a fixture)

KEY = Key(bytes(range(32)))
IDS = [f"{(i * 7919) % 16**6:06x}" for i in range(1, 41)]


def noisy(id, size, noise, seed=0):
    """Soft bits of an id's word under noise."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * encode_id(id, KEY, size).bits - 1 + noise * torch.randn(size, generator=generator)


@pytest.mark.parametrize(("id", "size"), [("beef", 32), ("c0ffee", 48), ("1", 48), ("f" * 9, 64), ("f" * 18, 128)])
def test_an_id_s_mark(id, size):
    assert word_size(id) == size


def test_equal_weights_are_the_binomial():
    logits, word = np.ones(48), np.ones(48)
    word[:7] = 0  # 41 of 48 agree
    expected = sum(math.comb(48, i) for i in range(41, 49)) / 2**48
    assert soft_match_log10_p(logits, word) == pytest.approx(math.log10(expected))
    assert soft_match_log10_p(logits, np.ones(48)) == pytest.approx(-48 * math.log10(2))
    assert soft_match_log10_p(np.zeros(48), word) == 0


def test_found_where_error_correction_fails():
    logits = noisy(IDS[5], 48, 1.0, seed=4)
    assert decode(logits, KEY).kind is None
    best = identify({48: logits}, IDS, KEY)
    assert best.id == IDS[5] and best.log10_p < -6 and best.among == 40 and 0.7 < best.bit_accuracy < 1
    alone = identify({48: logits}, [IDS[5]], KEY)
    assert best.log10_p == pytest.approx(alone.log10_p + math.log10(40))


def test_chance_is_counted():
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([identify({48: torch.randn(48, generator=generator)}, IDS, KEY).log10_p for _ in range(400)])
    for rate in (0.3, 0.1, 0.02):
        found = (values <= math.log10(rate)).double().mean()
        assert found <= rate + 3 * (rate / 400) ** 0.5, rate
    assert (values <= math.log10(0.3)).double().mean() > 0.1  # and is not overcounted


def test_a_wrong_key_finds_nothing():
    assert identify({48: noisy(IDS[5], 48, 0.3)}, IDS, Key(bytes(32))).log10_p > -4


def test_only_ids_of_the_reading_s_size():
    assert identify({48: torch.ones(48)}, ["beef", "f" * 9], KEY) is None
    assert identify({64: torch.ones(64)}, [], KEY) is None
    best = identify({32: noisy("beef", 32, 0.5), 64: noisy("1" * 9, 64, 0.5)}, ["beef", "1" * 9, "c0ffee"], KEY)
    assert best.id == "1" * 9 and best.among == 2


def test_readings_without_a_mark_are_guessed_for_every_size():
    extractor = KeyedExtractor(KEY)
    reading = extractor.read(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)), search=False)
    assert not reading.detected
    soft = extractor.guesses(reading, {48, 64})
    assert {size: len(logits) for size, logits in soft.items()} == {48: 48, 64: 64}


# ---- the command line


def test_lookup_identifies(onrw, tmp_path, monkeypatch):  # noqa: F811
    photo("photo.png")
    mark = ["embed", "photo.png", "-o", "m.png", "--key", "my.key"]
    assert onrw(*mark, "--id", "c0ffee", "--registry", "ids.db", "--note", "for Ann")[0] == 0
    registry = Registry("ids.db")
    for id in IDS:
        registry.add(id)
    look = ["extract", "--registry", "ids.db", "--key", "my.key"]
    code, out, err = onrw(*look, "m.png")
    assert code == 0 and "id c0ffee" in out and "for Ann" in out and "most likely" not in out, err
    assert "copied" not in out

    # The watermark alone, added to another image.
    watermark = load("m.png").rgb - load("photo.png").rgb
    save("other.png", (load("photo.png").rgb.flip(-2) * 0.8 + 0.1 + watermark).clamp(0, 1))
    _, out, _ = onrw(*look, "other.png")
    assert "id c0ffee" in out and "may have been copied" in out
    fields = [json.loads(onrw(*look, name, "--json")[1]) for name in ("m.png", "other.png")]
    assert [each["copied"] for each in fields] == [False, True] and "thumbnail" not in fields[0]["registered"][0]
    out = onrw("verify", "other.png", *look[1:])[1]
    assert "Same image: " in out and "may have been copied" in out

    # A reading whose message cannot be decoded.
    read = KeyedExtractor.read
    damage = torch.Generator().manual_seed(4)

    def damaged(self, image, key=None, **options):
        reading = read(self, image, key, **options)
        logits = reading.logits / reading.logits.abs().mean() + torch.randn(reading.num_bits, generator=damage)
        return replace(reading, logits=logits, message=decode(logits, key or self.key))

    monkeypatch.setattr(KeyedExtractor, "read", damaged)
    fields = json.loads(onrw(*look, "m.png", "--json")[1])
    assert fields["id"] is None and fields["identified"]["log10_p"] < -6
    assert fields["identified"]["among"] == 41 and fields["registered"][0]["note"] == "for Ann"
    damage.manual_seed(4)
    out = onrw("extract", "m.png", "--key", "my.key", "--registry", "ids.db")[1]
    assert "most likely id c0ffee of 41 registered" in out and "cannot be read" in out
    monkeypatch.setattr(KeyedExtractor, "read", read)

    # Without the mark the picture still looks like the one that was registered, which is said to be no proof.
    out = onrw(*look, "photo.png")[1]
    assert "photo.png: nothing found" in out and "no proof" in out and "for Ann" in out
    fields = json.loads(onrw("extract", "photo.png", "--key", "my.key", "--registry", "ids.db", "--json")[1])
    assert fields["identified"] is None and fields["registered"] == [] and fields["similar"][0]["distance"] <= 6
