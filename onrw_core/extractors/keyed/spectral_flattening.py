"""Flattening of the local spectrum: in each neighbourhood, frequencies with much power are attenuated.

Edges, stripes and fences have their power in few directions; in the others a watermark has a high signal-to-noise
ratio. In blocks B of 32 x 32 pixels that overlap by half, with the sine window h and P the power of a block's spectrum
averaged over 3 x 3 frequencies,

    f = sum_B h * F^-1[ P^(-p/2) F[h * w] ]

which is w itself for p = 0, and has a flat spectrum everywhere for p = 1. The gains P^(-p/2) are the weights of a
matched filter in noise that differs from place to place and from frequency to frequency; they depend on the image and
not on the key. They are constants for the gradient, and the map from w to f is symmetric, so it is its own transpose.

F is computed by two products with a small matrix of waves, along lines of pixels in both directions, with separate real
and imaginary parts. If only the band of the watermark is needed, higher frequencies are left out, which is cheaper than
a fast transform of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["BAND", "flatten_spectrum"]

SIDE = 32  # pixels; the band of the watermark is 1 to 5.4 cycles per block
HOP = SIDE // 2
ALL = SIDE // 2 + 1  # waves along a line
BAND = 9  # waves of the band, widened by the window
POWER = 0.8  # p
LEAST = 1e-3  # lower limit of the power, relative to the block's mean
STRIP = 2000  # blocks processed together; limits the memory for large images


def flatten_spectrum(w: Tensor, waves: int = ALL) -> Tensor:
    """Flatten the local spectrum of whitened images.

    Args:
        w: (B, 1, H, W), 0 where there is no image.
        waves: Number of frequencies along a line of a block, from 0 on; `BAND` for the band of the watermark alone.

    Returns:
        (B, 1, H, W), differentiable in `w` with constant gains. Its root mean square is 1 for each image, or the
        corresponding share if the waves are a part of a flat spectrum.
    """
    return _Flatten.apply(w, waves)


class _Flatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w: Tensor, waves: int) -> Tensor:
        gains: list[Tensor] = []

        def flattened(spectrum: Tensor) -> Tensor:
            gain = _gain(spectrum)
            if ctx.needs_input_grad[0]:
                gains.append(gain)
            return spectrum.mul_(gain)

        flat = _filtered(w, flattened, waves)
        share = min(1.0, (2 * waves - 1) / SIDE)
        scale = flat.square().mean((-2, -1), keepdim=True).add_(1e-20).rsqrt_().mul_(share)
        ctx.save_for_backward(scale, *gains)
        ctx.waves = waves
        return flat.mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        scale, *gains = ctx.saved_tensors
        gain = iter(gains)
        return _filtered(gradient * scale, lambda spectrum: spectrum.mul_(next(gain)), ctx.waves), None


@lru_cache(maxsize=8)
def _waves(number: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The window times cosines, then sines, of `number` waves, (2 number, SIDE); and the inverse, (SIDE, 2 number)."""
    window = torch.hann_window(SIDE, dtype=torch.float64).sqrt()
    phase = torch.arange(number)[:, None] * torch.arange(SIDE, dtype=torch.float64) * (2 * torch.pi / SIDE)
    waves = torch.stack([phase.cos(), phase.sin()]) * window
    share = torch.full((number, 1), 2.0 / SIDE, dtype=torch.float64)
    share[:: SIDE // 2] = 1.0 / SIDE  # the lowest and the highest frequency have no conjugate
    back = (waves * share).flatten(0, 1).T.contiguous()
    return waves.flatten(0, 1).to(device, dtype), back.to(device, dtype)


def _filtered(w: Tensor, change: Callable[[Tensor], Tensor], number: int) -> Tensor:
    """Apply `change` to the spectra of all blocks and add up the blocks.

    Args:
        w: (B, 1, H, W).
        change: Called with strips of blocks from top to bottom, (2, 2, C, number, number, B R): for the frequencies
            (kx, ky), then for (kx, -ky), real and negative imaginary part.
        number: Waves along a line.
    """
    count, _, height, width = w.shape
    w = F.pad(w[:, 0], (HOP, -width % HOP + HOP, HOP, -height % HOP + HOP))
    waves, back = _waves(number, w.device, w.dtype)
    total = torch.zeros_like(w)
    lines = w.unfold(1, SIDE, HOP).transpose(2, 3)  # (B, R, SIDE, W)
    limit = max(1, STRIP // (count * (w.shape[-1] // HOP - 1)))
    for top in range(0, lines.shape[1], limit):
        strip = waves @ lines[:, top : top + limit]
        rows = strip.shape[1]
        # The same transform along x.
        strip = rearrange(strip, "b rows waves width -> width (waves b rows)")
        blocks = waves @ strip.unfold(0, SIDE, HOP).transpose(1, 2)  # (C, 2 number, 2 number B R)
        blocks = blocks.view(-1, 2, number, 2, number, count * rows)
        cc, cs, sc, ss = blocks[:, 0, :, 0], blocks[:, 0, :, 1], blocks[:, 1, :, 0], blocks[:, 1, :, 1]
        (a, b), (c, d) = change(torch.stack([cc - ss, cs + sc, cc + ss, sc - cs]).unflatten(0, (2, 2)))
        torch.add(a, c, out=cc)
        torch.sub(c, a, out=ss)
        torch.add(b, d, out=sc)
        torch.sub(b, d, out=cs)
        strip = _added(strip.new_zeros(1, *strip.shape), back @ blocks.flatten(3).view(len(blocks), 2 * number, -1))
        strip = rearrange(strip, "1 width (waves b rows) -> b rows waves width", b=count, rows=rows)
        _added(total[:, top * HOP : (top + rows + 1) * HOP], back @ strip)
    return total[:, None, HOP : HOP + height, HOP : HOP + width].mul_(0.5)


def _added(total: Tensor, blocks: Tensor) -> Tensor:
    """Overlap-add of blocks (..., R, SIDE, N) into (..., (R + 1) HOP, N), at steps of `HOP` lines."""
    cells = total.unflatten(-2, (-1, HOP))
    cells[..., :-1, :, :] += blocks[..., :HOP, :]
    cells[..., 1:, :, :] += blocks[..., HOP:, :]
    return total


def _gain(spectrum: Tensor) -> Tensor:
    """The gains (2, 1, C, number, number, B R) of spectra as in `_filtered`."""
    power = spectrum.square().sum(1, keepdim=True).div_(9)
    mean = _three(_three(power, 3), 4)
    least = LEAST * mean.mean((0, 3, 4), keepdim=True)
    return mean.add_(least).add_(1e-12).pow_(-POWER / 2)


def _three(power: Tensor, dim: int) -> Tensor:
    """Sums of each frequency and its two neighbours along `dim`; the highest is its own neighbour.

    The neighbour below frequency 0 is frequency 1 of the other direction: the spectrum of a real image is even.
    """
    last = power.shape[dim] - 1
    total = power.clone()
    total.narrow(dim, 0, last).add_(power.narrow(dim, 1, last))
    total.narrow(dim, 1, last).add_(power.narrow(dim, 0, last))
    total.select(dim, last).add_(power.select(dim, last))
    total.select(dim, 0).add_(power.select(dim, 1).flip(0))
    return total
