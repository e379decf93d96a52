"""Noise attacks: their distribution, their generator, their gradient."""

import pytest
import torch

from onrw_core.attacks import attack

MIDDLE = torch.full((1, 3, 200, 200), 0.5)


@pytest.mark.parametrize("sigma", [0.02, 0.05])
def test_noise_is_gaussian(generator, sigma):
    change = attack("noise", sigma)(MIDDLE, generator()).images - MIDDLE
    assert change.mean().abs() < 0.001
    assert change.std().item() == pytest.approx(sigma, rel=0.03)
    assert (change.abs() > 2 * sigma).float().mean().item() == pytest.approx(0.0455, abs=0.006)


@pytest.mark.parametrize("levels", [10, 40])
def test_uniform_fills_its_range_evenly(generator, levels):
    change = (attack("uniform", levels)(MIDDLE, generator()).images - MIDDLE) * 255
    assert -levels - 1 <= change.min() < -levels + 2 and levels - 2 < change.max() <= levels + 1
    assert change.mean().abs() < 0.2
    assert change.std().item() == pytest.approx(levels / 3**0.5, rel=0.03)


def test_salt_and_pepper_are_equally_many_whole_pixels(generator):
    result = attack("salt-pepper", 0.1)(MIDDLE, generator()).images
    changed = (result != 128 / 255).all(1)
    assert torch.equal(changed, (result != 128 / 255).any(1))
    assert changed.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (result == 1).all(1).float().mean().item() == pytest.approx(0.05, abs=0.007)
    assert (result == 0).all(1).float().mean().item() == pytest.approx(0.05, abs=0.007)


@pytest.mark.parametrize("photons", [64, 255])
def test_poisson_has_the_variance_of_its_photons(generator, photons):
    for level in (0.2, 0.5):
        result = attack("poisson", photons)(torch.full_like(MIDDLE, level), generator()).images
        assert result.mean().item() == pytest.approx(level, abs=0.003)
        assert result.std().item() == pytest.approx((level / photons) ** 0.5, rel=0.04)


@pytest.mark.parametrize("name", ["noise", "uniform", "salt-pepper", "poisson"])
def test_noise_comes_from_the_generator_alone(photo, generator, name):
    first = attack(name)(photo, generator(1)).images
    assert torch.equal(first, attack(name)(photo, generator(1)).images)
    assert not torch.equal(first, attack(name)(photo, generator(2)).images)
    assert torch.equal(attack(name)(photo).images, attack(name)(photo).images)
    assert not torch.equal(first[0] - photo[0], first[1] - photo[1])  # each image of a batch has noise of its own
