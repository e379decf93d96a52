"""Interfaces of diffusion models and autoencoders.

All latents are in sigma space, ``x = x0 + sigma * eps``; backends convert those of flow models (see `ode`). A model is
a function that returns the denoised latent ``x0_hat``; guidance acts on ``x0_hat``, which equals guidance on the noise
(Ho & Salimans 2022). Latents are in the model's own scale (about unit variance).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["AttentionControl", "AttentionMaps", "Autoencoder", "Conditioning", "DiffusionModel"]


@dataclass(frozen=True)
class Conditioning:
    """An encoded prompt.

    Attributes:
        embeddings: Token embeddings, shape (1, T, C) or (B, T, C).
        pooled: Pooled embedding, shape (1, P), for the models that take one.
        content: Indices of the content tokens (no begin, end or padding); None where unknown.
        word: Indices of the tokens of a chosen word; None without one.
        options: Further inputs of the network by name: tensors, plain values, and lists, tuples and dicts of them
            (sizes, attention masks, guidance, areas). Saved to files.
        opaque: What a backend needs beside these (ControlNets, hooks, ...); never saved to files.
        missing: Names of the parts in `opaque`. A conditioning from a file keeps the names alone.
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    content: tuple[int, ...] | None = None
    word: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    opaque: Any = None
    missing: tuple[str, ...] = ()

    @property
    def incomplete(self) -> bool:
        """Whether parts were lost in a file, so that the conditioning must be given again."""
        return bool(self.missing) and self.opaque is None

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
    """The attention probabilities that a model call records, and those that it replaces.

    Recording leaves the output bit-identical. `inject` replaces the self-attention probabilities of the positive branch
    (the first conditioning) in the layers that it contains.

    Attributes:
        record: ``record(kind, tokens) -> bool`` with kind "self" or "cross" and the number of query tokens.
        inject: Self-attention maps that replace those of the model.
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
        prediction: Output of the network, "eps" or "v"; used by inversion in the target convention alone.
        factor: Pixels per latent position and side; determines which attention maps are recorded.
        maps: What the self-attention constraint compares: "attention" probabilities; "features", the self-similarity of
            a network's features where its attention cannot be read; or "none". Only "attention" allows pseudo-masks and
            injection.
        distilled: Guidance is an input of the network, which has no unconditional branch.
    """

    name: str
    sigmas: Tensor
    prediction: str = "eps"
    factor: int = 8
    maps: str = "attention"
    distilled: bool = False
    _recomputing = False

    @abstractmethod
    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        """Predict the clean latent under each conditioning.

        Args:
            x: Noisy latent in sigma space, (B, C, h, w), float32.
            sigma: Noise level, a scalar tensor.
            conditionings: One or more conditionings, evaluated in one batch where the backend supports it.
            control: Attention maps to record or to replace.

        Returns:
            x0_hat for each conditioning, each (B, C, h, w) float32, and the maps recorded under the first one (empty
            without `control`).
        """

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """A context in which calls with gradients keep the activations of one block at a time, if supported."""
        before, self._recomputing = self._recomputing, True
        try:
            yield
        finally:
            self._recomputing = before

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
        """Latents -> images (B, 3, H, W), about [0, 1] and not clamped, so that gradients pass."""

    def decode_checkpointed(self, latents: Tensor) -> Tensor:
        """`decode` with its activations recomputed in the backward pass; a backend may do so block by block."""
        return checkpoint(self.decode, latents, use_reentrant=False)
