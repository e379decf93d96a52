"""Whitening: its definition, its gradient, and what is flat."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.whitening import BLOCK, CLAMP, FLOOR, flat_mask, whiten


def reference(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The definition, operation by operation."""

    def smooth(x):
        height, width = x.shape[-2:]
        small = F.avg_pool2d(F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK)), BLOCK)
        kernel = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
        small = F.conv2d(small, torch.outer(kernel, kernel)[None, None], padding=1)
        return F.interpolate(small, scale_factor=BLOCK, mode="bilinear", align_corners=False)[..., :height, :width]

    inverse = 1 / smooth(weight).clamp(min=1e-3)
    high = y - smooth(y * weight) * inverse
    deviation = (smooth(high * high * weight) * inverse + 1e-6).sqrt()
    strength = deviation + FLOOR
    w = high / strength
    return w / (1 + (w / CLAMP) ** 2).sqrt() / strength * weight


@pytest.mark.parametrize("shape", [(1, 1, 64, 96), (2, 1, 66, 71), (1, 1, 5, 130)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition_and_its_gradient(shape, masked):
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.ones(1, *shape[1:], dtype=torch.float64)
    if masked:
        weight[..., :3, :50] = 0
        weight[..., -9:] = 0
    expected = reference(y, weight)
    found = whiten(y, weight if masked else None)
    assert torch.allclose(found, expected, atol=1e-9)
    (of_expected,) = torch.autograd.grad(expected, y, gradient)
    (of_found,) = torch.autograd.grad(found, y, gradient)
    assert torch.allclose(of_found, of_expected, atol=1e-8 * float(of_expected.abs().max()))


def test_flat_areas_and_their_surroundings_have_no_weight():
    y = torch.rand(1, 1, 90, 130, generator=torch.Generator().manual_seed(0))
    assert flat_mask(y) is None
    y[..., 30:60, 40:80] = 0.3
    mask = flat_mask(y)
    assert mask.shape == y.shape and set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask[..., 32:56, 44:76] == 0).all()
    assert (mask[..., :20, :] == 1).all() and (mask[..., 72:, :] == 1).all() and (mask[..., 100:] == 1).all()
    # Flat from edge to edge; a lone flat block of 4 x 4 pixels is texture.
    assert (flat_mask(torch.full((1, 1, 64, 64), 0.5)) == 0).all()
    y = torch.rand(1, 1, 90, 130, generator=torch.Generator().manual_seed(0))
    y[..., 40:48, 40:48] = 0.3
    assert flat_mask(y) is None
