"""What the library asks of a diffusion model and of its autoencoder.

Everything works in sigma space: ``x = x0 + sigma * eps`` for eps and v models, ``x = (1 - sigma) * x0 + sigma * eps``
for flow models. A model is a function that returns the denoised latent ``x0_hat``; guidance acts on ``x0_hat``, which
equals guidance on the noise (Ho & Salimans 2022). Latents are in the model's own scale (about unit variance).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["AttentionControl", "AttentionMaps", "Autoencoder", "Conditioning", "DiffusionModel"]


@dataclass(frozen=True)
class Conditioning:
    """A prompt as a model sees it.

    Attributes:
        embeddings: Token embeddings, shape (1, T, C) or (B, T, C).
        pooled: Pooled embedding, shape (1, P), for the models that take one.
        content: Indices of the tokens that carry meaning (no begin, end or padding); None where unknown.
        word: Indices of the tokens of a chosen word; None without one.
        opaque: Whatever else a backend needs (areas, ControlNets, ...); never saved to files.
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    content: tuple[int, ...] | None = None
    word: tuple[int, ...] | None = None
    opaque: Any = None

    def with_embeddings(self, embeddings: Tensor) -> Conditioning:
        """The same conditioning with other token embeddings."""
        return replace(self, embeddings=embeddings)


@dataclass(frozen=True)
class AttentionMaps:
    """Attention probabilities by layer name, with the spatial size (h, w) of each layer's queries.

    Attributes:
        self_attention: Layer -> (B, heads, h*w, h*w), or (B, 1, h*w, h*w) averaged over heads.
        cross_attention: Layer -> (B, heads or 1, h*w, T).
        sizes: Layer -> (h, w).
    """

    self_attention: dict[str, Tensor] = field(default_factory=dict)
    cross_attention: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionControl:
    """Which attention probabilities a model call records, and which it replaces.

    Recording never changes the output, not by one bit. `inject` replaces the self-attention probabilities of the
    positive branch (the first conditioning) in the layers that it holds.

    Attributes:
        record: ``record(kind, tokens) -> bool`` with kind "self" or "cross" and the number of query tokens.
        inject: Self-attention maps to use in place of the model's own.
        mean: Record averages over heads, (B, 1, N, M): an eighth of the memory or less.
    """

    record: Callable[[str, int], bool]
    inject: AttentionMaps | None = None
    mean: bool = False


class DiffusionModel(ABC):
    """A frozen noise predictor. Gradients flow to `x` and to the embeddings, never to the weights.

    Attributes:
        name: Identifies the model in records (family and a fingerprint of its weights).
        sigmas: The training noise levels, ascending, shape (T,), float32 on the CPU.
        flow: Whether ``x = (1 - sigma) * x0 + sigma * eps``.
        prediction: What the network puts out, "eps", "v" or "flow"; only inversion in the target convention asks.
    """

    name: str
    sigmas: Tensor
    flow: bool = False
    prediction: str = "eps"

    @abstractmethod
    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        """Predict the clean latent under each conditioning.

        Args:
            x: Noisy latent in sigma space, (B, C, h, w), float32.
            sigma: Noise level, a scalar tensor.
            conditionings: One or more conditionings, evaluated in one batch where the backend can.
            control: What to record or replace in the attention layers.

        Returns:
            x0_hat for each conditioning, each (B, C, h, w) float32, and the maps recorded under the first one (empty
            without `control`).
        """

    def recomputing(self) -> AbstractContextManager[None]:
        """Within it, a call with gradients holds the activations of one block at a time, where the backend can."""
        return nullcontext()

    def guided(
        self,
        x: Tensor,
        sigma: Tensor,
        positive: Conditioning,
        null: Conditioning | None,
        guidance: float,
        control: AttentionControl | None = None,
    ) -> tuple[Tensor, AttentionMaps]:
        """Classifier-free guidance on x0_hat: ``null + guidance * (positive - null)``.

        `null` is not evaluated at guidance 1. The maps are those of the positive branch.
        """
        if guidance == 1 or null is None:
            (x0,), maps = self.denoise(x, sigma, [positive], control)
            return x0, maps
        (x0, x0_null), maps = self.denoise(x, sigma, [positive, null], control)
        return x0_null + guidance * (x0 - x0_null), maps


class Autoencoder(ABC):
    """A frozen, deterministic image autoencoder.

    Attributes:
        name: Identifies the autoencoder in records.
        factor: Pixels per latent position and side.
        channels: Latent channels.
    """

    name: str
    factor: int
    channels: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides multiples of `factor` -> latents (B, C, h, w) in the model's scale."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, 3, H, W), about [0, 1] and not clamped, so that gradients survive."""

    def decode_checkpointed(self, latents: Tensor) -> Tensor:
        """`decode`, whose activations are computed again in the backward pass; a backend may do so part by part."""
        return checkpoint(self.decode, latents, use_reentrant=False)
