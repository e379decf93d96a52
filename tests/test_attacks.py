import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from onrw_core.attacks import ATTACKS, MIX, MIXES, attack, chain, parse, suite, training_mix
from onrw_core.convolve import gaussian_blur
from onrw_core.geometry import Geometry, resample
from onrw_core.rounding import round_8bit

SUITES = ["onrw12", "onrw12-random", "extended"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photo():
    """Smooth blobs of all colours, far from black and white, 96 x 120."""
    noise = torch.randn(2, 3, 96, 120, generator=generator(3))
    smooth = gaussian_blur(noise, 5)
    return round_8bit(0.5 + 0.12 * smooth / smooth.std())


def names():
    return sorted(ATTACKS)


@pytest.mark.parametrize("name", names())
def test_result_is_an_8bit_picture_and_repeats(photo, name):
    first, second = attack(name)(photo, generator(1)), attack(name)(photo, generator(1))
    assert first.images.dtype == torch.float32
    assert torch.equal(first.images, second.images)
    levels = first.images * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert first.images.min() >= 0 and first.images.max() <= 1
    assert len(first.images) == 2


@pytest.mark.parametrize("name", names())
def test_gradient_reaches_the_input(photo, name):
    images = photo.clone().requires_grad_(True)
    result = attack(name)(images, generator(1)).images
    weights = torch.randn(result.shape, generator=generator(2))
    (gradient,) = torch.autograd.grad((result * weights).sum(), images)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.15  # crops and corners leave part of the picture without one


@pytest.mark.parametrize(
    "text",
    ["crop=.3", "crop-random=.3", "rotation=25", "rotation=-90", "rotation=180", "rotation=270", "rotation=-333"]
    + ["resize=.3", "resize=1.7", "aspect=.7", "aspect=1.4", "flip", "perspective=.15", "border=.2"]
    + ["screenshot=.8", "screenshot-border=.8", "crop=.6+rotation=90+resize=.5", "flip+crop-random=.5+aspect=.8"],
)
def test_geometry_is_exact(photo, text):
    """Drawing the input where the geometry says gives the received picture, and half a pixel off does not."""
    photo = photo.mean(1, keepdim=True).expand_as(photo)  # grey: JPEG's coarse colours would blur the comparison
    result = parse(text)(photo, generator(5))
    size = tuple(result.images.shape[-2:])
    inside = resample(torch.ones_like(photo), result.geometry, size) > 0.999
    inside = F.avg_pool2d(inside.float(), 9, 1, 4, count_include_pad=False) > 0.999  # edges may differ
    assert inside.float().mean() > 0.1

    def error(x, y):
        drawn = resample(photo, result.geometry @ Geometry.shift(x, y), size, "bicubic")
        return (result.images - drawn)[inside].square().mean()

    assert all(error(0, 0) < error(x, y) / 2 for x, y in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)))


def test_sizes_follow_area_and_are_never_restored(photo):
    assert attack("crop", 0.25)(photo).images.shape[-2:] == (48, 60)
    assert attack("resize", 0.25)(photo).images.shape[-2:] == (48, 60)
    assert attack("rotation", 25)(photo).images.shape == photo.shape
    assert attack("rotation", 90)(photo).images.shape[-2:] == (120, 96)
    assert attack("aspect", 0.5)(photo).images.shape[-2:] == (96, 60)
    assert attack("aspect", 2.0)(photo).images.shape[-2:] == (48, 120)


def test_rotation_is_counter_clockwise_and_quarter_turns_are_exact(photo):
    assert torch.equal(attack("rotation", 90)(photo).images, torch.rot90(photo, 1, (-2, -1)))
    near = attack("rotation", 89.999)(photo[..., :96, :96]).images
    assert (near - torch.rot90(photo[..., :96, :96], 1, (-2, -1)))[..., 2:-2, 2:-2].abs().max() < 0.01
    corners = attack("rotation", 45)(photo).images[..., 0, 0]
    assert torch.equal(corners, torch.zeros_like(corners))


def test_crop_is_central_and_crop_random_moves(photo):
    assert torch.equal(attack("crop", 0.25)(photo, generator(1)).images, photo[..., 24:72, 30:90])
    places = {tuple(attack("crop-random", 0.25)(photo, generator(i)).geometry.matrix[:2, 2].tolist()) for i in range(5)}
    assert len(places) > 1


def test_jpeg_is_pillows(photo):
    with io.BytesIO() as file:
        pixels = (photo[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=50, subsampling="4:2:0")
        expected = np.asarray(Image.open(file), dtype=np.float32) / 255
    assert np.allclose(attack("jpeg", 50)(photo).images[0].permute(1, 2, 0), expected, atol=1e-6)


def test_jpeg_passes_the_gradient_through(photo):
    images = photo.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(attack("jpeg")(images).images.sum(), images)
    assert torch.equal(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize(
    ("text", "low", "high"), [("noise=.05", 0.047, 0.053), ("uniform=10", 0.021, 0.024), ("poisson=255", 0.03, 0.055)]
)
def test_noise_has_its_strength(photo, text, low, high):
    assert low < (parse(text)(photo, generator()).images - photo).std() < high


def test_salt_and_pepper_hits_its_share(photo):
    changed = (attack("salt-pepper", 0.1)(photo, generator()).images != photo).any(1).float().mean()
    assert 0.08 < changed < 0.12


@pytest.mark.parametrize(
    ("name", "neutral"),
    [("brightness", 1), ("contrast", 1), ("saturation", 1), ("gamma", 1), ("hue", 0), ("sharpness", 1), ("blur", 0)],
)
def test_neutral_strength_changes_nothing(photo, name, neutral):
    assert torch.allclose(attack(name, neutral)(photo).images, photo, atol=1e-6)


def test_tones(photo):
    assert torch.allclose(attack("brightness", 0.5)(photo).images, photo / 2, atol=0.003)
    grey = attack("saturation", 0)(photo).images
    assert (grey[:, 0] - grey[:, 2]).abs().max() < 1e-6
    assert torch.allclose(attack("gamma", 2)(photo).images, photo**2, atol=0.003)
    turned = attack("hue", 120)(photo).images.mean((0, 2, 3))
    assert (turned - photo.mean((0, 2, 3))).abs().max() > 1e-3


@pytest.mark.parametrize("name", names())
def test_text_form_reads_back(name):
    assert parse(str(attack(name))) == attack(name)
    kind = ATTACKS[name]
    assert kind.low <= kind.default <= kind.high
    assert kind.description.endswith(".")


def test_chain_reads_back_and_applies_in_order(photo):
    both = parse("crop=.5+brightness=1.5+jpeg=80")
    assert str(both) == "crop=0.5+brightness=1.5+jpeg=80"
    step = photo
    for part in (attack("crop", 0.5), attack("brightness", 1.5), attack("jpeg", 80)):
        step = part(step).images
    assert torch.equal(both(photo).images, step)
    assert chain([attack("flip")]) == attack("flip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpg", "unknown attack 'jpg'; choose from"),
        ("jpeg=500", "out of range; give one in \\[1, 100\\]"),
        ("jpeg=x", "not a number"),
        ("rotation=450", "out of range"),
        ("jpeg=nan", "out of range"),
        ("flip=2", "takes no strength"),
        ("", "unknown attack"),
    ],
)
def test_bad_text_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_suites():
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


@pytest.mark.parametrize("name", SUITES)
def test_suites_run(photo, name):
    for item in suite(name, generator(4)):
        assert item(photo, generator(5)).images.isfinite().all()


def test_training_mix_is_continuous_varied_and_valid(photo):
    mix = training_mix()
    drawn = mix.draw(generator(7), 300)
    assert {part.name for item in drawn for part in getattr(item, "parts", (item,))} == {r.name for r in MIX}
    assert any(str(item).count("+") for item in drawn)
    constants = {str(item) for name in ("onrw12", "extended") for item in suite(name)} - {"flip"}
    assert not constants & {str(item) for item in drawn}
    assert len({item.name for item in mix.draw(generator(8), 4)}) == 4
    for item in drawn[:20]:
        assert item(photo, generator(9)).images.isfinite().all()


def test_a_training_mix_can_look_at_windows(photo):
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


def test_training_mix_covers_the_suites():
    """Every strength of onrw12, and of the ranges of onrw12-random, lies inside the mix."""
    ranges = {entry.name.removesuffix("-random"): entry for entry in MIX}
    items = suite("onrw12") + [item for seed in range(20) for item in suite("onrw12-random", generator(seed))]
    for item in items:
        turns = item.name == "rotation" and abs(item.strength) > 180
        entry = ranges[item.name.removesuffix("-random")]
        assert turns or entry.low < item.strength < entry.high or abs(item.strength) == 180


def test_training_mixes_hold_what_their_names_say():
    made = (replace(MIX[0], weight=0.1),)  # stands for what a model makes
    drawn = {name: {item.name for item in training_mix(name, made).draw(generator(), 60)} for name in MIXES}
    assert drawn["none"] == {"identity"} and "jpeg" in drawn["values"] and "rotation" not in drawn["values"]
    assert {"rotation", "crop-random"} <= drawn["geometric"] and not any("jpeg" in kind for kind in drawn["geometric"])
    turns = [item.strength for item in training_mix("upright").draw(generator(), 60) if item.name == "rotation"]
    assert turns and max(map(abs, turns)) <= 40 and not drawn["upright"] & {"perspective", "aspect"}
    with pytest.raises(ValueError, match="unknown attack mix 'hard'.*all"):
        training_mix("hard")
    with pytest.raises(ValueError, match="a model makes"):
        training_mix("regeneration")
    assert training_mix("regeneration", made).ranges[-1] is made[0] and made[0] not in training_mix("all", made).ranges
