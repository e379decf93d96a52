"""What holds for every attack: its registry entry, its text form, 8-bit results, gradients, chains."""

import pytest
import torch

from onrw_core.attacks import ATTACKS, attack, chain, parse

NAMES = sorted(ATTACKS)


@pytest.mark.parametrize("name", NAMES)
def test_result_is_an_8bit_picture_and_repeats(photo, name, generator):
    first, second = attack(name)(photo, generator(1)), attack(name)(photo, generator(1))
    assert first.images.dtype == torch.float32
    assert torch.equal(first.images, second.images)
    levels = first.images * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert first.images.min() >= 0 and first.images.max() <= 1
    assert len(first.images) == 2


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_input(photo, name, generator):
    images = photo.clone().requires_grad_(True)
    result = attack(name)(images, generator(1)).images
    weights = torch.randn(result.shape, generator=generator(2))
    (gradient,) = torch.autograd.grad((result * weights).sum(), images)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.15  # crops and corners leave part of the picture without one


# Default, least and greatest strength: saved workflows and published command lines hold strengths.
STRENGTHS = {
    "crop": (0.5, 0.01, 1),
    "crop-random": (0.5, 0.01, 1),
    "rotation": (25, -360, 360),
    "resize": (0.5, 0.01, 4),
    "aspect": (0.8, 0.25, 4),
    "perspective": (0.1, 0, 0.4),
    "jpeg": (50, 1, 100),
    "webp": (80, 1, 100),
    "screenshot": (0.75, 0.1, 2),
    "blur": (1, 0, 10),
    "mean": (3, 1, 15),
    "sharpness": (2, 0, 5),
    "noise": (0.05, 0, 0.5),
    "uniform": (10, 0, 128),
    "salt-pepper": (0.01, 0, 0.5),
    "poisson": (255, 4, 10000),
    "text": (0.1, 0.02, 0.5),
    "border": (0.1, 0, 1),
    "screenshot-border": (0.75, 0.1, 2),
    "brightness": (1.5, 0, 4),
    "contrast": (1.5, 0, 4),
    "saturation": (1.5, 0, 4),
    "gamma": (1.5, 0.2, 5),
    "hue": (20, -180, 180),
}


def test_strengths_are_those_of_record():
    assert {name: (kind.default, kind.low, kind.high) for name, kind in ATTACKS.items() if kind.unit} == STRENGTHS


def test_without_a_generator_the_seed_is_zero(photo, generator):
    alone = attack("noise")(photo).images
    assert torch.equal(alone, attack("noise")(photo, generator(0)).images)
    assert not torch.equal(alone, attack("noise")(photo, generator(1)).images)


@pytest.mark.parametrize("name", NAMES)
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
