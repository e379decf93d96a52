"""Codec attacks: Pillow's own files forward, the identity backward."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.attacks import attack, parse


def coded(image: torch.Tensor, **options) -> torch.Tensor:
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, **options)
        return torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32) / 255).permute(2, 0, 1)


@pytest.mark.parametrize("quality", [30, 50, 90])
def test_jpeg_is_pillows(photo, quality):
    expected = torch.stack([coded(image, format="JPEG", quality=quality, subsampling="4:2:0") for image in photo])
    assert torch.allclose(attack("jpeg", quality)(photo).images, expected, atol=1e-6)


@pytest.mark.parametrize("quality", [40, 80])
def test_webp_is_pillows(photo, quality):
    expected = torch.stack([coded(image, format="WEBP", quality=quality, method=2) for image in photo])
    assert torch.allclose(attack("webp", quality)(photo).images, expected, atol=1e-6)


def test_screenshot_is_a_resize_and_a_jpeg(photo):
    result = attack("screenshot", 0.5)(photo)
    assert result.images.shape[-2:] == (48, 60)
    expected = parse("resize=.25+jpeg=85")(photo)
    assert torch.equal(result.images, expected.images)
    assert torch.equal(result.geometry.matrix, expected.geometry.matrix)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_gradient_passes_through(photo, name):
    images = photo.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(attack(name)(images).images.sum(), images)
    assert torch.equal(gradient, torch.ones_like(gradient))
