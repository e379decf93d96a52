"""Flattening of the local spectrum: its gradient, and what it does to stripes."""

import pytest
import torch

from onrw_core.extractors.keyed import spectral_flattening
from onrw_core.extractors.keyed.spectral_flattening import ALL, BAND, SIDE, flatten_spectrum
from onrw_core.extractors.keyed.tile_average import coefficients, mean_tile


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 1, 50, 71), (1, 1, 7, 130)])
def test_without_gains_the_blocks_add_up_to_the_picture(shape, monkeypatch):
    monkeypatch.setattr(spectral_flattening, "POWER", 0.0)
    w = noise(*shape)
    flat = flatten_spectrum(w)
    assert torch.allclose(flat, w / w.square().mean((-2, -1), keepdim=True).sqrt(), atol=1e-9)


@pytest.mark.parametrize("strip", [1, 12, 1000])
def test_gradient_is_that_of_the_linear_map_with_the_gains_held(strip, monkeypatch):
    monkeypatch.setattr(spectral_flattening, "STRIP", strip)
    w, direction, gradient = noise(1, 1, 50, 71), noise(1, 1, 50, 71).flip(-1), noise(1, 1, 50, 71).flip(-2)
    gains = []
    spectral_flattening._filtered(w, lambda blocks: gains.append(spectral_flattening._gain(blocks)) or blocks, ALL)

    def changed(picture: torch.Tensor) -> torch.Tensor:
        gain = iter(gains)
        return spectral_flattening._filtered(picture, lambda blocks: blocks * next(gain), ALL)

    held, scale = changed(direction), changed(w).square().mean().rsqrt()
    w.requires_grad_()
    (found,) = torch.autograd.grad(flatten_spectrum(w), w, gradient)
    assert float((found * direction).sum()) == pytest.approx(float((gradient * held).sum() * scale))


@pytest.mark.parametrize("number", [ALL, BAND])
def test_spectra_and_gains_are_those_of_a_transform(number):
    w = noise(1, 1, 48, 64)
    seen = []
    spectral_flattening._filtered(w, lambda blocks: seen.append(blocks.clone()) or blocks, number)
    window = torch.hann_window(SIDE, dtype=w.dtype).sqrt()
    block = torch.fft.fft2(w[0, 0, 16:48, 16:48] * window * window[:, None]).T  # by kx, then ky
    rows = seen[0].shape[-1]
    assert rows == 4
    ahead, behind = (torch.complex(x[0], -x[1])[2, ..., 2] for x in seen[0])
    mirrored = -torch.arange(number) % SIDE
    assert torch.allclose(ahead, block[:number, :number], atol=1e-9)
    assert torch.allclose(behind, block[:number, mirrored], atol=1e-9)
    power = block.abs().square()
    mean = sum(power.roll((x, y), (0, 1)) for x in (-1, 0, 1) for y in (-1, 0, 1)) / 9
    inner = (slice(number - 1), slice(number - 1))
    ratio = spectral_flattening._gain(seen[0])[0, 0, 2][inner][..., 2] * mean[inner].pow(spectral_flattening.POWER / 2)
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=5e-3)  # but for what no frequency goes below


def test_the_band_alone_gives_the_same_tile():
    w = noise(1, 1, 128, 192).float()
    whole, band = (coefficients(mean_tile(flatten_spectrum(w, number))) for number in (ALL, BAND))
    assert float(torch.cosine_similarity(whole, band)) > 0.995
    assert float(band.norm() / whole.norm()) == pytest.approx(1, abs=0.1)


def test_stripes_are_turned_down_and_the_rest_is_not():
    x = torch.arange(128, dtype=torch.float64)
    stripes = (2 * torch.pi * x / 10).sin().expand(1, 1, 128, 128)
    fine = 0.1 * noise(1, 1, 128, 128)
    flat = flatten_spectrum(fine + stripes)[0, 0]
    before = torch.fft.rfft2((fine + stripes)[0, 0]).abs()
    after = torch.fft.rfft2(flat).abs()
    # Stripes are at (0, 12.8) of 128 bins; noise is looked at in a quarter where there are none.
    ratio = float(before[0, 13] / before[40:60, 5:30].mean()), float(after[0, 13] / after[40:60, 5:30].mean())
    assert ratio[1] < ratio[0] / 10
