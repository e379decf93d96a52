"""The suites that figures are measured on, and the mix that the optimisation sees."""

from dataclasses import replace

import pytest
import torch

from onrw_core.attacks import MIX, MIXES, suite, training_mix
from onrw_core.attacks.suites import RANDOM_RANGES, UPRIGHT
from onrw_core.imaging.metrics import psnr

SUITES = ["onrw12", "onrw12-random", "extended"]


def test_suites(generator):
    assert len(suite("onrw12")) == 12
    drawn = suite("onrw12-random", generator(1))
    assert len(drawn) == 12
    assert drawn == suite("onrw12-random", generator(1)) != suite("onrw12-random", generator(2))
    assert {a.name.removesuffix("-random") for a in drawn} == {a.name for a in suite("onrw12")}
    assert len(suite("extended")) >= 15
    with pytest.raises(ValueError, match="unknown suite"):
        suite("onrw13")
    with pytest.raises(ValueError, match="Generator"):
        suite("onrw12-random")


def test_training_mix_is_continuous_varied_and_valid(photo, generator):
    mix = training_mix()
    drawn = mix.draw(generator(7), 300)
    assert {part.name for item in drawn for part in getattr(item, "parts", (item,))} == {r.name for r in MIX}
    assert any(str(item).count("+") for item in drawn)
    constants = {str(item) for name in ("onrw12", "extended") for item in suite(name)} - {"flip"}
    assert not constants & {str(item) for item in drawn}
    assert len({item.name for item in mix.draw(generator(8), 4)}) == 4
    for item in drawn[:20]:
        assert item(photo, generator(9)).images.isfinite().all()


def test_a_training_mix_can_look_at_windows(photo, generator):
    frame = torch.linspace(0, 1, 100 * 60).reshape(1, 1, 100, 60).expand(1, 3, 100, 60)
    for kind in ("none", "geometric"):
        for item in training_mix(kind, window=400).draw(generator(3), 6):
            attacked = item(frame, generator(4))
            assert attacked.images[0, 0].numel() <= 440  # sides are whole pixels
    (item,) = training_mix("none", window=400).draw(generator(3))
    attacked = item(frame, generator(4))
    x, y = attacked.geometry.apply(torch.tensor([[0.5, 0.5]], dtype=torch.float64))[0].tolist()
    corner = frame[0, 0, int(y), int(x)]
    assert (attacked.images[0, 0, 0, 0] - corner).abs() <= 0.5 / 255 + 1e-6
    assert training_mix("none", window=10**6).draw(generator(3))[0](frame).images.shape == frame.shape


def test_training_mix_covers_the_suites(generator):
    """Every strength of onrw12, and of the ranges of onrw12-random, lies inside the mix."""
    ranges = {entry.name.removesuffix("-random"): entry for entry in MIX}
    items = suite("onrw12") + [item for seed in range(20) for item in suite("onrw12-random", generator(seed))]
    for item in items:
        turns = item.name == "rotation" and abs(item.strength) > 180
        entry = ranges[item.name.removesuffix("-random")]
        assert turns or entry.low < item.strength < entry.high or abs(item.strength) == 180


def test_training_mixes_hold_what_their_names_say(generator):
    made = (replace(MIX[0], weight=0.1),)  # stands for what a model makes
    drawn = {name: {item.name for item in training_mix(name, made).draw(generator(), 60)} for name in MIXES}
    assert drawn["none"] == {"identity"} and "jpeg" in drawn["values"] and "rotation" not in drawn["values"]
    assert {"rotation", "crop-random"} <= drawn["geometric"] and not any("jpeg" in kind for kind in drawn["geometric"])
    turns = [item.strength for item in training_mix("upright").draw(generator(), 60) if item.name == "rotation"]
    assert turns and max(map(abs, turns)) <= 40 and not drawn["upright"] & {"perspective", "aspect"}
    with pytest.raises(ValueError, match="unknown attack mix 'hard'.*all"):
        training_mix("hard")
    with pytest.raises(ValueError, match="regeneration attacks of a model"):
        training_mix("regeneration")
    assert training_mix("regeneration", made).ranges[-1] is made[0] and made[0] not in training_mix("all", made).ranges


def test_onrw12_is_the_suite_of_record():
    """Its twelve attacks and strengths are published with every figure: they may not change unnoticed."""
    assert [str(item) for item in suite("onrw12")] == [
        "crop=0.1",
        "crop=0.5",
        "rotation=25",
        "rotation=90",
        "resize=0.3",
        "resize=0.7",
        "brightness=1.5",
        "brightness=2",
        "jpeg=80",
        "jpeg=50",
        "noise=0.05",
        "blur=1",
    ]


def test_onrw12_random_draws_from_the_ranges_of_record(generator):
    assert [(entry.name, entry.low, entry.high) for entry in RANDOM_RANGES] == [
        ("crop-random", 0.1, 0.5),
        ("crop-random", 0.5, 0.9),
        ("rotation", -45, 45),
        ("resize", 0.25, 0.64),
        ("resize", 0.64, 1.44),
        ("brightness", 0.7, 1.3),
        ("brightness", 1.3, 2.0),
        ("jpeg", 40, 65),
        ("jpeg", 65, 90),
        ("noise", 0.02, 0.06),
        ("blur", 0.5, 1.3),
    ]
    drawn = [suite("onrw12-random", generator(seed)) for seed in range(20)]
    assert {items[-1].strength for items in drawn} == {90, 180, 270}
    for entry, *items in zip(RANDOM_RANGES, *drawn, strict=False):
        assert all(entry.low <= item.strength < entry.high for item in items)


def test_the_mix_weighs_what_is_measured(generator):
    """As the comment at MIX says; turns to both sides are equally likely."""
    shares = {"onrw12": 0.0, "extended": 0.0, "other": 0.0}
    kinds = {name: {item.name for item in suite(name)} for name in ("onrw12", "extended")}
    for entry in MIX:
        name = entry.name.removesuffix("-random")
        shares[next((s for s in kinds if name in kinds[s]), "other")] += entry.weight
    assert shares == pytest.approx({"onrw12": 9.5, "extended": 2.4, "other": 0.5})
    for entry in (*MIX, *UPRIGHT):
        assert entry.name not in ("rotation", "hue") or entry.low == -entry.high


@pytest.mark.parametrize("name", SUITES)
def test_every_attack_of_a_suite_changes_the_image(photo, generator, name):
    for item in suite(name, generator(4)):
        attacked = item(photo, generator(5))
        assert 0 <= attacked.images.min() and attacked.images.max() <= 1
        moved = not torch.equal(attacked.geometry.matrix, torch.eye(3, dtype=torch.float64))
        assert moved or psnr(attacked.images[:1], photo[:1]) < 60, str(item)
