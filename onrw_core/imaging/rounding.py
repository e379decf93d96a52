"""Rounding to 8 bit, exact or with a straight-through gradient.

A watermark has to survive the rounding in an image file, so the optimisation works on rounded images. Rounding has
derivative zero almost everywhere; the straight-through estimator (Bengio et al. 2013, arXiv
1308.3432) takes the rounded value forward and the identity backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LEVELS", "round_8bit", "straight_through", "to_8bit"]

LEVELS = 255  # the largest value of an 8-bit channel


def straight_through(value: Tensor, proxy: Tensor) -> Tensor:
    """`value` forward, the gradient of `proxy` backward (both of one shape)."""
    if not (torch.is_grad_enabled() and proxy.requires_grad):
        return value.detach()
    # Not proxy + (value - proxy).detach(): that is off by a rounding error, and 8-bit values must be exact.
    return _StraightThrough.apply(value.detach(), proxy)


def round_8bit(images: Tensor, straight_clamp: bool = False) -> Tensor:
    """Clamp to [0, 1] and round to multiples of 1/255, with the gradient of the clamp or of the identity.

    Args:
        images: Any shape, about [0, 1].
        straight_clamp: Pass the gradient through clamped values as well. For an optimiser that has to leave the
            clamped region; not for an attack that destroys values (overexposure).
    """
    clamped = images.clamp(0, 1)
    rounded = (clamped.detach() * LEVELS).round() / LEVELS
    return straight_through(rounded, images if straight_clamp else clamped)


def to_8bit(images: Tensor) -> Tensor:
    """Images of any shape, about [0, 1], as 8-bit levels: clamped and rounded, uint8, without gradient."""
    return images.detach().clamp(0, 1).mul_(LEVELS).round_().to(torch.uint8)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, proxy: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
