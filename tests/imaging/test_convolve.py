import pytest
import torch
import torch.nn.functional as F

from onrw_core.imaging.convolve import gaussian_blur, gaussian_kernel, separable


def reference(images, kernel):
    weights, channels = torch.tensor(kernel).to(images), images.shape[1]
    padded = F.pad(images, (len(kernel) // 2,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, weights[:, None].expand(channels, 1, -1, 1), groups=channels)


@pytest.mark.parametrize("shape", [(2, 3, 17, 23), (1, 1, 8, 8)])
@pytest.mark.parametrize("kernel", [[1.0], [0.25, 0.5, 0.25], gaussian_kernel(1.7)])
def test_equals_depthwise_convolution_forward_and_backward(shape, kernel):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    ours, theirs = separable(images, kernel), reference(images, kernel)
    assert torch.allclose(ours, theirs, atol=1e-12)
    (mine,) = torch.autograd.grad((ours**3).sum(), images)
    (expected,) = torch.autograd.grad((theirs**3).sum(), images)
    assert torch.allclose(mine, expected, atol=1e-12)


def test_kernel_is_normalised_and_zero_sigma_is_identity():
    assert sum(gaussian_kernel(2.3)) == pytest.approx(1)
    images = torch.rand(1, 1, 9, 9)
    assert gaussian_blur(images, 0) is images


@pytest.mark.parametrize("kernel", [[0.5, 0.5], [0.1, 0.5, 0.4]])
def test_refuses_kernels_whose_gradient_would_be_wrong(kernel):
    with pytest.raises(ValueError, match="symmetric"):
        separable(torch.rand(1, 1, 9, 9), kernel)
