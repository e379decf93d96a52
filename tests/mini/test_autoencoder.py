"""Autoencoder of the embedded model."""

from __future__ import annotations

import pytest
import torch

from onrw_core.mini import MiniAutoencoder
from onrw_core.mini.autoencoder import PatchAutoencoder, principal_patches
from onrw_core.training.train_autoencoder import set_latent_scale

SMALL = {"latent_channels": 8, "stem": 16, "encoder": 16, "decoder": 16, "head": 8}


def smooth_images(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


@pytest.fixture
def started() -> tuple[PatchAutoencoder, torch.Tensor]:
    torch.manual_seed(0)
    images = smooth_images(8, 64)
    model = PatchAutoencoder(**SMALL)
    model.initialise_linear(*principal_patches(images, 8))
    return model, images


@torch.no_grad()
def test_starts_as_the_principal_component_code(started):
    model, images = started
    basis, mean, deviation = principal_patches(images, 8)
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-4)
    assert (deviation.diff() <= 1e-6).all()
    patches = torch.nn.functional.pixel_unshuffle(images * 2 - 1, 8) - mean[None, :, None, None]
    best = torch.einsum("kc,bchw->bkhw", basis, patches)
    residual = (patches - torch.einsum("kc,bkhw->bchw", basis, best)).square().mean() / 4
    assert (model(images) - images).square().mean() == pytest.approx(float(residual), rel=1e-3)


@torch.no_grad()
def test_latent_scale_is_undone_by_decoding(started):
    model, images = started
    before = model(images)
    model.latent_scale.fill_(3.0)
    assert torch.allclose(model(images), before, atol=1e-5)
    set_latent_scale(model, images)
    assert model.encode(images).std() == pytest.approx(1.0, rel=1e-3)


def test_sizes_and_gradient(started):
    model, _ = started
    adapter = MiniAutoencoder(model.requires_grad_(False))
    images = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    latent = adapter.encode(images)
    assert latent.shape == (1, adapter.channels, 5, 3) and adapter.factor == 8
    latent.requires_grad_()
    decoded = adapter.decode(latent)
    assert decoded.shape == images.shape
    decoded.square().mean().backward()
    assert latent.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="multiple of 8"):
        adapter.encode(torch.rand(1, 3, 30, 32))
