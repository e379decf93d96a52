import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from onrw_core.imaging.metrics import flattest_window, flattest_window_psnr, luminance, psnr, ssim


def pictures(seed=0, size=(80, 97)):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9, generator=generator), size, mode="bicubic")
    original = smooth.clamp(0, 1)
    return original, (original + 0.03 * torch.randn(original.shape, generator=generator)).clamp(0, 1)


def test_psnr():
    original = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(original, original) == math.inf
    assert psnr(original + 0.1, original) == pytest.approx(20, abs=1e-5)


def test_weighted_psnr_counts_only_what_has_weight():
    original, marked = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    marked[..., :4] = 0.1
    weight = torch.zeros(1, 1, 8, 8)
    assert psnr(marked, original, weight) == math.inf
    weight[..., :4] = 0.5
    assert psnr(marked, original, weight) == pytest.approx(20, abs=1e-5)
    weight[..., 4:] = 0.5
    assert psnr(marked, original, weight) == pytest.approx(psnr(marked, original))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_equals_skimage(dtype):
    original, marked = (x.to(dtype) for x in pictures())
    expected = [
        structural_similarity(
            a.permute(1, 2, 0).numpy(),
            b.permute(1, 2, 0).numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        for a, b in zip(original, marked, strict=True)
    ]
    assert np.allclose(ssim(marked, original).numpy(), expected, atol=1e-4)
    assert torch.allclose(ssim(original, original), torch.ones(2, dtype=dtype))


def test_ssim_is_differentiable_and_refuses_tiny_pictures():
    original, marked = pictures()
    marked.requires_grad_(True)
    ssim(marked, original).mean().backward()
    assert marked.grad.isfinite().all() and marked.grad.abs().max() > 0
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(torch.rand(1, 3, 10, 30), torch.rand(1, 3, 10, 30))


def test_flattest_window_is_found_and_measured():
    original = torch.rand(1, 3, 150, 200, generator=torch.Generator().manual_seed(1))
    original[..., 37:101, 111:175] = 0.5
    assert flattest_window(original) == (37, 111)
    marked = original.clone()
    marked[..., 37:101, 111:175] += 0.01
    marked[..., :30, :] += 0.1
    assert flattest_window_psnr(marked, original) == pytest.approx(40, abs=1e-3)


def test_flattest_window_agrees_with_brute_force():
    original = torch.rand(1, 3, 40, 45, generator=torch.Generator().manual_seed(2))
    grey = luminance(original)[0, 0]
    variances = grey.unfold(0, 16, 1).unfold(1, 16, 1).var(dim=(-2, -1), unbiased=False)
    assert flattest_window(original, 16) == divmod(int(variances.argmin()), variances.shape[1])


def test_small_picture_is_its_own_window():
    original = torch.rand(1, 3, 30, 40)
    assert flattest_window(original) == (0, 0)
    assert flattest_window_psnr(original + 0.1, original) == pytest.approx(20, abs=1e-4)
