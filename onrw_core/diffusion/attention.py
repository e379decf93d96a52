"""Self-attention constraint and cross-attention pseudo-mask.

Self-attention determines the layout. During optimisation it is kept close to that of the original branch (ONRW, arXiv
2601.17388): ``mean over layers of mean (A - A_original)^2`` over the maps with at most (res / 16)^2 tokens, res being
the image's side in pixels. Cross-attention at res / 32 locates the prompt's words (Hertz et al. 2023); averaged over
heads, layers and content tokens it is the pseudo-mask that confines the change. It is coarse, so it is propagated along
the self-attention, which is high between positions of one object (Nguyen et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .model import AttentionMaps, Conditioning

__all__ = [
    "averaged",
    "grid_size",
    "mask_grid",
    "probabilities",
    "pseudo_mask",
    "record_rule",
    "redirected",
    "self_attention_loss",
    "sharpened",
]

SELF_STRIDE = 16
"""Pixels per token along one side, for the finest self-attention in the constraint."""
CROSS_STRIDE = 32
"""The same for the cross-attention of the pseudo-mask."""
DEEPEST_STRIDE = 64
"""Largest stride of a layer that `grid_size` considers."""
WALK = 4
"""Propagation steps along the self-attention; many steps would spread any mask evenly."""
SLOPE = 3.0
"""Slope of the logistic curve of the sharpened mask, per standard deviation."""
AT_ONCE = 2**24
"""Probabilities held at a time where only their average over heads is needed: 64 MiB."""
FLAT = 1e-6
"""Relative range below which a map counts as constant."""


def _shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size after strided convolutions with padding: `size` / `stride`, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def mask_grid(size: tuple[int, int], factor: int = 8) -> tuple[int, int]:
    """(h, w) of the cross-attention that the pseudo-mask needs; arguments as for `record_rule`."""
    return _shrunk(size, max(1, CROSS_STRIDE // factor))


def record_rule(size: tuple[int, int], factor: int = 8) -> Callable[[str, int], bool]:
    """The maps that the constraint and the pseudo-mask need, as a function for `AttentionControl.record`.

    Args:
        size: (h, w) of the latent.
        factor: Pixels per latent position and side.
    """
    finest_self = torch.Size(_shrunk(size, max(1, SELF_STRIDE // factor))).numel()
    cross = torch.Size(mask_grid(size, factor)).numel()

    def record(kind: str, tokens: int) -> bool:
        return tokens <= finest_self if kind == "self" else tokens == cross

    return record


def probabilities(q: Tensor, k: Tensor, mean: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) in float32.

    Args:
        q: Queries, (B, heads, N, d).
        k: Keys, (B, heads, M, d).
        mean: Average over heads. Large maps are computed a few heads at a time, and again in the backward pass: at
            64x64 positions the ten heads of one layer would take 640 MiB.

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
    total = q.new_zeros((), dtype=torch.float32)
    for first in range(0, heads, step):
        some = slice(first, first + step)
        total = total + checkpoint(
            lambda q, k: softmax(q, k).sum(1, keepdim=True), q[:, some], k[:, some], use_reentrant=False
        )
    return total / heads


def averaged(t: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Queries or keys of an image's tokens, (B, heads, h * w, d) of `size`, averaged over the cells of a grid."""
    if tuple(grid) == tuple(size):
        return t
    heads, (height, width) = t.shape[1], size
    flat = rearrange(t, "b heads (h w) d -> b (heads d) h w", h=height, w=width)
    return rearrange(F.adaptive_avg_pool2d(flat, grid), "b (heads d) h w -> b heads (h w) d", heads=heads)


def redirected(q: Tensor, k: Tensor, v: Tensor, given: Tensor, image: slice, mask: Tensor | None = None) -> Tensor:
    """Joint attention to text and image, in which the image's attention to itself is distributed as `given`.

    The share of the attention that goes to the text stays that of the queries and keys.

    Args:
        q: Queries of all tokens, (B, heads, N, d).
        k: Keys, alike.
        v: Values, alike.
        given: Distributions over the image's tokens, (B or 1, heads or 1, n, n).
        image: Where the image's tokens are.
        mask: Of the attention, boolean or to be added, broadcast to (B, heads, N, N).

    Returns:
        The output at the image's tokens, (B, heads, n, d), in float32.
    """
    q = q[:, :, image].float()
    logits = q @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        while mask.ndim < 4:
            mask = mask.unsqueeze(1)
        mask = mask[..., image, :] if mask.shape[-2] > 1 else mask
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    own, v = logits.softmax(-1), v.float()
    share = own[..., image].sum(-1, keepdim=True)
    elsewhere = own.clone()
    elsewhere[..., image] = 0
    return elsewhere @ v + share * (given.to(v) @ v[:, :, image])


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
        maps: Maps of the branch that is optimised; (B, heads, N, N) for each layer.
        reference: Maps of the original branch; the same layers, B may be 1, on any device.

    Returns:
        A scalar, differentiable in `maps`.

    Raises:
        ValueError: The layers of the two differ, or there are none.
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
    """Soft mask of the regions that the prompt's words attend to.

    The tokens are those of the conditioning's chosen word, else its content tokens, else all but the first (begin,
    which gets high attention at all positions). Without words or contrast, the mask is all ones.

    Args:
        maps: Cross-attention, (B, heads, h*w, T) for each layer. Self-attention, where recorded, propagates the mask
            over the objects of the image, by the finest layers.
        conditioning: The prompt that the maps were recorded with.
        size: (h, w) of the mask, which is that of the latent.

    Returns:
        (B, 1, h, w) in [0, 1], float32, without gradient; all ones for no restriction.

    Raises:
        ValueError: No cross-attention was recorded, or a token index exceeds the maps.
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
        raise ValueError(
            f"the prompt's token {max(chosen)} exceeds the {tokens} tokens of the maps; encode the prompt again"
        )
    grid, affinity = _affinity(maps)
    grid = grid or size
    layers = []
    for layer, attention in maps.cross_attention.items():
        heat = attention.detach().float()[..., list(chosen)].mean(dim=(1, 3))
        height, width = maps.sizes[layer]
        heat = rearrange(heat, "b (h w) -> b 1 h w", h=height, w=width)
        layers.append(F.interpolate(heat, grid, mode="bilinear", align_corners=False))
    mask = torch.stack(layers).mean(0)
    if affinity is not None:
        for _ in range(WALK):
            # Stretched to [0, 1] after each step: nearly uniform attention would leave little contrast.
            moved = affinity @ rearrange(mask, "b 1 h w -> b (h w) 1")
            mask = _spread(rearrange(moved, "b (h w) 1 -> b 1 h w", h=mask.shape[-2]))
    return _spread(F.interpolate(mask, size, mode="bilinear", align_corners=False))


def sharpened(mask: Tensor) -> Tensor:
    """A soft mask (B, 1, h, w) with more contrast: a logistic curve about its mean, stretched to [0, 1]."""
    deviation, mean = torch.std_mean(mask, (2, 3), keepdim=True)
    flat = deviation <= FLAT
    return torch.where(flat, mask, _spread(torch.sigmoid(SLOPE * (mask - mean) / deviation.clamp(min=FLAT))))


def _affinity(maps: AttentionMaps) -> tuple[tuple[int, int] | None, Tensor | None]:
    """The finest recorded self-attention, averaged over heads and layers, made symmetric and normalised.

    Returns:
        Its grid (h, w) and the affinities, (B, h*w, h*w), rows of sum 1; (None, None) where none was recorded.
    """
    if not maps.self_attention:
        return None, None
    finest = max(attention.shape[-1] for attention in maps.self_attention.values())
    chosen = {k: a.detach().float().mean(1) for k, a in maps.self_attention.items() if a.shape[-1] == finest}
    mean = torch.stack(list(chosen.values())).mean(0)
    mutual = mean + mean.transpose(-1, -2)
    return maps.sizes[next(iter(chosen))], mutual / mutual.sum(-1, keepdim=True)


def _spread(mask: Tensor) -> Tensor:
    """Stretch each image's mask to [0, 1]; ones where there is no contrast."""
    low, high = mask.amin((2, 3), keepdim=True), mask.amax((2, 3), keepdim=True)
    flat = high - low <= FLAT * high
    return torch.where(flat, 1.0, (mask - low) / (high - low).clamp(min=torch.finfo(mask.dtype).tiny))
