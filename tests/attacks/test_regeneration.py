"""Regeneration as an attack: size, rounding, gradient, strengths; and the mix that holds it."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.attacks import chain, parse, training_mix
from onrw_core.attacks.regeneration import purification, regenerations, round_trip
from onrw_core.bench.regeneration import lost_at

from ..stages.test_noise_optimisation import parts  # noqa: F401  (parts is a fixture)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_round_trip_keeps_size_and_passes_the_gradient(parts):  # noqa: F811
    autoencoder, image = parts[1], parts[2][..., :100, :130].clone().requires_grad_()
    attacked = round_trip(autoencoder)(image, generator())
    assert attacked.images.shape == image.shape
    levels = attacked.images * 255
    torch.testing.assert_close(levels, levels.round())
    attacked.images.square().mean().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    exact = autoencoder.decode(autoencoder.encode(padded(image)))[..., :100, :130]
    assert (attacked.images - exact.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-5  # without noise, whatever is drawn
    # Noise changes the image, by its generator alone.
    noisy = round_trip(autoencoder, 0.3)
    assert torch.equal(noisy(image, generator(1)).images, noisy(image, generator(1)).images)
    assert not torch.equal(noisy(image, generator(1)).images, noisy(image, generator(2)).images)
    assert str(noisy) == "vae=0.3" and str(round_trip(autoencoder, name="vae-own")) == "vae-own"


def padded(image):
    """To multiples of 64, as encoders need."""
    return F.pad(image, (0, 192 - image.shape[-1], 0, 128 - image.shape[-2]), mode="replicate")


@pytest.mark.parametrize("steps", [1, 3])
def test_purification_changes_more_with_sigma(parts, steps):  # noqa: F811
    model, autoencoder, image, _, null = parts
    changes = []
    for sigma in (0.1, 0.5, 2.0):
        x = image.clone().requires_grad_()
        result = purification(model, autoencoder, null, sigma, steps)(x, generator()).images
        changes.append((result - image).square().mean().item())
        result.square().mean().backward()
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert changes == sorted(changes) and changes[2] > 2 * changes[0]


def test_the_mix_draws_and_chains_them(parts):  # noqa: F811
    mix = training_mix("regeneration", regenerations(parts[0], parts[1], parts[4]))
    drawn = mix.draw(generator(), 200)
    made = {part for attack in drawn for part in str(attack).split("+") if part.startswith(("vae", "purify"))}
    vae, purify = ([float(part.split("=")[1]) for part in made if part.startswith(kind)] for kind in ("vae", "purify"))
    assert len(vae) > 10 and 0 <= min(vae) < 0.03 and 0.12 < max(vae) <= 0.15
    assert len(purify) > 10 and 0.03 <= min(purify) < 0.15 and 1.05 < max(purify) <= 1.2
    weights = {entry.name: entry.weight for entry in mix.ranges}
    assert weights["vae"] == weights["jpeg"] < weights["purify"]
    both = chain([parse("crop=.5"), next(a for a in drawn if a.name == "purify")])
    attacked = both(parts[2], generator())
    assert attacked.images.shape[-1] < parts[2].shape[-1] and not torch.equal(attacked.geometry.matrix, torch.eye(3))


def test_where_presence_is_lost():
    assert lost_at([(0.1, 1.0), (0.2, 0.75), (0.4, 0.25), (0.8, 0.0)]) == pytest.approx(0.3)
    assert lost_at([(0.1, 1.0), (0.2, 0.5)]) is None
    assert lost_at([(0.1, 0.2)]) == 0.1
