"""What attention says about a picture: the constraint on its structure, and the mask of what its prompt names.

Self-attention holds the layout. During optimisation it is kept close to that of the original branch (ONRW, arXiv
2601.17388): ``mean over layers of mean (A - A_original)^2`` over the maps with at most (res / 16)^2 tokens, res being
the picture's side. Cross-attention at res / 32 says where the prompt's words are (Hertz et al. 2023); averaged over
heads, layers and tokens of meaning it is the pseudo-mask that confines the change. It is coarse, so it is passed on
along the self-attention: positions that look at each other belong to the same thing (Nguyen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .model import AttentionMaps, Conditioning

__all__ = ["grid_size", "probabilities", "pseudo_mask", "record_rule", "self_attention_loss", "sharpened"]

SELF_STRIDE = 2
"""Latent positions per token and side of the finest self-attention in the constraint: res / 16 at 8 pixels each."""
CROSS_STRIDE = 4
"""The same for the cross-attention behind the pseudo-mask: res / 32."""
DEEPEST_STRIDE = 64
WALK = 4
"""Steps along the self-attention: few, since a long walk forgets where it began."""
SLOPE = 3.0
"""Of the sharpened mask, per standard deviation."""
AT_ONCE = 2**24
"""Probabilities that are held at a time where only their average over heads is wanted: 64 MiB."""
FLAT = 1e-6
"""Relative range below which a map says nothing about places."""


def _shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """What strided convolutions with padding leave of `size`: halves, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def record_rule(size: tuple[int, int]) -> Callable[[str, int], bool]:
    """Which maps the constraint and the pseudo-mask need, as `AttentionControl.record` wants it.

    Args:
        size: (h, w) of the latent.
    """
    finest_self = torch.Size(_shrunk(size, SELF_STRIDE)).numel()
    cross = torch.Size(_shrunk(size, CROSS_STRIDE)).numel()

    def record(kind: str, tokens: int) -> bool:
        return tokens <= finest_self if kind == "self" else tokens == cross

    return record


def probabilities(q: Tensor, k: Tensor, mean: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) in float32.

    Args:
        q: Queries, (B, heads, N, d).
        k: Keys, (B, heads, M, d).
        mean: Average over heads. Large maps are made a few heads at a time, and again in the backward pass: at 64x64
            positions the ten heads of one layer would hold 640 MiB.

    Returns:
        (B, heads, N, M), or (B, 1, N, M).
    """

    def softmax(q: Tensor, k: Tensor) -> Tensor:
        return (q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)

    if not mean:
        return softmax(q, k)
    batch, heads, queries, _ = q.shape
    step = max(1, AT_ONCE // (batch * queries * k.shape[2]))
    if step >= heads:
        return softmax(q, k).mean(1, keepdim=True)
    total = 0
    for first in range(0, heads, step):
        some = slice(first, first + step)
        total = total + checkpoint(
            lambda q, k: softmax(q, k).sum(1, keepdim=True), q[:, some], k[:, some], use_reentrant=False
        )
    return total / heads


def grid_size(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a layer with `tokens` queries in a network on a latent of `size`.

    Raises:
        ValueError: No power of two divides the latent into that many tokens.
    """
    stride = 1
    while stride <= DEEPEST_STRIDE:
        height, width = _shrunk(size, stride)
        if height * width == tokens:
            return height, width
        stride *= 2
    raise ValueError(f"a layer with {tokens} tokens does not fit a latent of {size[0]}x{size[1]}; use another size")


def self_attention_loss(maps: AttentionMaps, reference: AttentionMaps) -> Tensor:
    """Mean squared difference of self-attention probabilities, averaged over layers.

    Args:
        maps: Of the branch that is optimised; (B, heads, N, N) a layer.
        reference: Of the original branch; the same layers, B may be 1, on any device.

    Returns:
        A scalar, differentiable in `maps`.

    Raises:
        ValueError: The two hold different layers, or none.
    """
    if not maps.self_attention or maps.self_attention.keys() != reference.self_attention.keys():
        raise ValueError(
            f"the branches recorded {len(maps.self_attention)} and {len(reference.self_attention)} layers of "
            "self-attention; record both with the same rule"
        )
    losses = [
        (attention - reference.self_attention[layer].detach().to(attention.device)).square().mean()
        for layer, attention in maps.self_attention.items()
    ]
    return torch.stack(losses).mean()


def pseudo_mask(maps: AttentionMaps, conditioning: Conditioning, size: tuple[int, int]) -> Tensor:
    """Where the prompt's words are, softly.

    The tokens are those of the conditioning's chosen word, else its content tokens, else all but the first (begin,
    which attracts attention from everywhere). A prompt without words, or a map without contrast, confines nothing.

    Args:
        maps: Cross-attention, (B, heads, h*w, T) a layer; with self-attention the mask follows the things in the
            picture, along the finest layers recorded.
        conditioning: The prompt the maps were recorded under.
        size: (h, w) of the mask, the latent's.

    Returns:
        (B, 1, h, w) in [0, 1], float32, without gradient; ones where nothing is confined.

    Raises:
        ValueError: No cross-attention was recorded, or a token lies beyond the maps.
    """
    if not maps.cross_attention:
        raise ValueError("no cross-attention was recorded at this size; use a latent of at least 8x8, or no mask")
    batch, _, _, tokens = next(iter(maps.cross_attention.values())).shape
    chosen = conditioning.word or conditioning.content
    if chosen is None:
        chosen = tuple(range(1, tokens))
    if not chosen:
        return torch.ones(batch, 1, *size)
    if max(chosen) >= tokens:
        raise ValueError(f"the prompt's token {max(chosen)} lies beyond the {tokens} of the maps; encode it again")
    grid, affinity = _affinity(maps)
    grid = grid or size
    layers = []
    for layer, attention in maps.cross_attention.items():
        heat = attention.detach().float()[..., list(chosen)].mean(dim=(1, 3))
        heat = heat.reshape(batch, 1, *maps.sizes[layer])
        layers.append(F.interpolate(heat, grid, mode="bilinear", align_corners=False))
    mask = torch.stack(layers).mean(0)
    if affinity is not None:
        for _ in range(WALK):
            # Over [0, 1] after each step: where everything looks everywhere, little contrast is left to carry on.
            mask = _spread((affinity @ mask.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(mask.shape))
    return _spread(F.interpolate(mask, size, mode="bilinear", align_corners=False))


def sharpened(mask: Tensor) -> Tensor:
    """A soft mask (B, 1, h, w) with its two sides told apart: a logistic curve through its mean, over [0, 1] again."""
    deviation, mean = torch.std_mean(mask, (2, 3), keepdim=True)
    flat = deviation <= FLAT
    return torch.where(flat, mask, _spread(torch.sigmoid(SLOPE * (mask - mean) / deviation.clamp(min=FLAT))))


def _affinity(maps: AttentionMaps) -> tuple[tuple[int, int] | None, Tensor | None]:
    """Grid (h, w) of the finest recorded self-attention, and how much its positions look at each other.

    Returns:
        None twice where there is none, else the grid and rows that sum to 1, (B, h*w, h*w).
    """
    if not maps.self_attention:
        return None, None
    finest = max(attention.shape[-1] for attention in maps.self_attention.values())
    chosen = {k: a.detach().float().mean(1) for k, a in maps.self_attention.items() if a.shape[-1] == finest}
    mean = torch.stack(list(chosen.values())).mean(0)
    mutual = mean + mean.transpose(-1, -2)
    return maps.sizes[next(iter(chosen))], mutual / mutual.sum(-1, keepdim=True)


def _spread(mask: Tensor) -> Tensor:
    """Onto [0, 1], each image by itself; ones where there is no contrast."""
    low, high = mask.amin((2, 3), keepdim=True), mask.amax((2, 3), keepdim=True)
    flat = high - low <= FLAT * high
    return torch.where(flat, 1.0, (mask - low) / (high - low).clamp(min=torch.finfo(mask.dtype).tiny))
