"""Flattening of the local spectrum: in each neighbourhood, what is strong at few frequencies is turned down.

Edges, stripes and fences are loud in some directions and silent in the others, and a mark is heard where they are
silent. In blocks B of 32 x 32 pixels that overlap by half, with the sine window h and P the power of a block's spectrum
averaged over 3 x 3 frequencies,

    f = sum_B h * F^-1[ P^(-p/2) F[h * w] ]

which for p = 0 is w itself, and for p = 1 has a flat spectrum everywhere. The gains P^(-p/2) are the weights of a
matched filter in noise that differs from place to place and from frequency to frequency; they depend on the picture and
on no key. They are constants for the gradient, and the map from w to f is symmetric, so it is its own transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["flatten_spectrum"]

SIDE = 32  # pixels; the band of the mark is bins 1 to 5.4
HOP = SIDE // 2
POWER = 0.8  # p
LEAST = 1e-3  # of a block's mean power, that no frequency goes below
STRIP = 200  # blocks at a time: they stay in the cache, and their memory is used again


def flatten_spectrum(w: Tensor) -> Tensor:
    """Flatten the local spectrum of whitened pictures.

    Args:
        w: (B, 1, H, W), 0 where there is no picture.

    Returns:
        (B, 1, H, W) of root mean square 1 for each picture; differentiable in `w`, the gains held.
    """
    return _Flatten.apply(w)


class _Flatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        gains: list[Tensor] = []

        def flattened(spectrum: Tensor) -> Tensor:
            gain = _gain(spectrum)
            if ctx.needs_input_grad[0]:
                gains.append(gain)
            return spectrum.mul_(gain)

        flat = _filtered(w, flattened)
        scale = flat.square().mean((-2, -1), keepdim=True).add_(1e-20).rsqrt_()
        ctx.save_for_backward(scale, *gains)
        return flat.mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        scale, *gains = ctx.saved_tensors
        gain = iter(gains)
        return _filtered(gradient * scale, lambda spectrum: spectrum.mul_(next(gain)))


@lru_cache(maxsize=4)
def _window(device: torch.device, dtype: torch.dtype) -> Tensor:
    line = torch.hann_window(SIDE, dtype=dtype, device=device).sqrt()
    return line[:, None] * line


def _filtered(w: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the spectra of all blocks, (B, 1, R, C, SIDE, SIDE / 2 + 1) from top to bottom, and add the blocks up."""
    height, width = w.shape[-2:]
    w = F.pad(w, (HOP, -width % HOP + HOP, HOP, -height % HOP + HOP))
    window = _window(w.device, w.dtype)
    blocks = w.unfold(-2, SIDE, HOP).unfold(-2, SIDE, HOP)
    rows = max(1, STRIP // (len(w) * blocks.shape[3]))
    total = torch.zeros_like(w)
    cells = total.unflatten(-2, (-1, HOP)).unflatten(-1, (-1, HOP)).transpose(3, 4)  # (B, 1, R + 1, C + 1, HOP, HOP)
    top = 0
    for strip in blocks.split(rows, 2):
        strip = torch.fft.irfft2(change(torch.fft.rfft2(strip * window)), s=(SIDE, SIDE)).mul_(window)
        quarters = strip.unflatten(-2, (2, HOP)).unflatten(-1, (2, HOP))
        for down in range(2):
            band = cells[:, :, top + down : top + down + strip.shape[2]]
            band[:, :, :, :-1] += quarters[..., down, :, 0, :]
            band[:, :, :, 1:] += quarters[..., down, :, 1, :]
        top += strip.shape[2]
    return total[..., HOP : HOP + height, HOP : HOP + width]


def _gain(spectrum: Tensor) -> Tensor:
    power = spectrum.real.square().add_(spectrum.imag.square())
    # The spectrum of a real picture is even: the column before the first is the second one upside down.
    before = power[..., 1:2].flip(-2).roll(1, -2)
    power = torch.cat([before, power, power[..., -1:]], -1).div_(9)
    lines = (power[..., :-2] + power[..., 1:-1]).add_(power[..., 2:])
    mean = lines.roll(1, -2).add_(lines)
    mean[..., :-1, :].add_(lines[..., 1:, :])
    mean[..., -1, :].add_(lines[..., 0, :])
    least = LEAST * mean.mean((-2, -1), keepdim=True)
    return mean.add_(least).add_(1e-12).pow_(-POWER / 2)
