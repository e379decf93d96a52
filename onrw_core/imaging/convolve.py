"""Separable convolution with small symmetric kernels, by shifted sums.

On a CPU a depthwise convolution is an order of magnitude slower than adding shifted copies of the image, most of all
in the backward pass. The gradient is the transpose: the same sums, with the values on the replicated margin added to
the edge.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gaussian_blur", "gaussian_kernel", "separable", "valid"]

TRUNCATE = 3.0  # half-width of the Gaussian kernel, in sigmas


def gaussian_kernel(sigma: float, radius: int | None = None) -> list[float]:
    """Weights of a Gaussian of `sigma` pixels, 2 * radius + 1 of them (default radius: three sigmas), sum 1."""
    radius = max(1, math.ceil(TRUNCATE * sigma)) if radius is None else radius
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (..., H, W) by a Gaussian of `sigma` pixels (0: unchanged); edges replicated."""
    return separable(images, gaussian_kernel(sigma)) if sigma > 0 else images


def separable(images: Tensor, kernel: list[float]) -> Tensor:
    """Convolve rows and columns of (B, C, H, W) with one kernel, edges replicated.

    Args:
        images: (B, C, H, W).
        kernel: Symmetric, an odd number of weights.

    Raises:
        ValueError: The kernel is even or not symmetric (its gradient would be wrong).
    """
    if len(kernel) % 2 == 0 or any(abs(a - b) > 1e-12 for a, b in zip(kernel, kernel[::-1], strict=True)):
        raise ValueError("the kernel must be symmetric, with an odd number of weights")
    return _Separable.apply(images, kernel)


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, kernel: list[float]) -> Tensor:
        ctx.kernel = kernel
        return valid(F.pad(images, (len(kernel) // 2,) * 4, mode="replicate"), kernel)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        radius = len(ctx.kernel) // 2
        padded = valid(F.pad(gradient, (2 * radius,) * 4), ctx.kernel)
        for dim in (-2, -1):
            size = padded.shape[dim] - 2 * radius
            inner = padded.narrow(dim, radius, size).clone()
            inner.narrow(dim, 0, 1).add_(padded.narrow(dim, 0, radius).sum(dim, keepdim=True))
            inner.narrow(dim, size - 1, 1).add_(padded.narrow(dim, radius + size, radius).sum(dim, keepdim=True))
            padded = inner
        return padded, None


def valid(images: Tensor, kernel: list[float]) -> Tensor:
    """Convolve rows and columns of (..., H, W) with one kernel inside the image: 2 * radius fewer rows and columns."""
    for dim in (-2, -1):
        size = images.shape[dim] - len(kernel) + 1
        total = images.narrow(dim, 0, size) * kernel[0]
        for offset, weight in enumerate(kernel[1:], 1):
            total.add_(images.narrow(dim, offset, size), alpha=weight)
        images = total
    return images
