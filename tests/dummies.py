"""Tiny random networks that stand for models in the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onrw_core.diffusion.model import AttentionControl, AttentionMaps, Conditioning, DiffusionModel
from onrw_core.diffusion.ode import latent_scale, sigmas_from_alphas_cumprod
from onrw_core.extractors.base import Extractor
from onrw_core.pipeline import Marked
from onrw_core.stages.quality import Judgement

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's noise schedule."""


def alphas_cumprod(steps: int = 1000) -> Tensor:
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2, 0)


def prompt(seed: int, tokens: int = 6, width: int = 8) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(1, tokens, width, generator=generator), content=tuple(range(1, tokens - 1)))


def marked(image: Tensor, bits: Tensor, extractor: Extractor) -> Marked:
    """What `pipeline.embed` would return, with figures that nobody measured."""
    return Marked(image, bits, Judgement(90.0, 2.0, 0.8), 40.0, 40.0, 0.99, 8, 0.5, (), torch.empty(0), extractor)


class DummyModel(DiffusionModel):
    """A random convolution and a cross-attention whose strength `text` sets how much guidance matters.

    Attributes:
        raw: The network itself, ``raw(z, sigma, embeddings)`` on unit-variance latents: what it puts out is eps, v or
            the flow's velocity, as `prediction` says; a flow is shown in the eps form (see `ode`).
        calls: Number of network evaluations so far.
    """

    name = "dummy"

    def __init__(self, prediction: str = "eps", channels: int = 4, width: int = 8, text: float = 0.5, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        hidden = 16
        self.flow = prediction == "flow"
        self.prediction, self.text, self.calls = "eps" if self.flow else prediction, text, 0
        levels = torch.arange(1, 1000) / 1000
        self.sigmas = levels / (1 - levels) if self.flow else sigmas_from_alphas_cumprod(alphas_cumprod())

        def weight(*shape: int) -> Tensor:
            fan_in = math.prod(shape[1:])
            return torch.randn(*shape, generator=generator) / fan_in**0.5

        self.into, self.out = weight(hidden, channels, 3, 3), weight(channels, hidden, 3, 3)
        self.query, self.key = weight(hidden, hidden) * 2, weight(hidden, width)
        self.value, self.residual = weight(hidden, width), weight(channels, channels, 1, 1)

    def raw(self, z: Tensor, sigma: Tensor, embeddings: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.tanh(F.conv2d(z, self.into, padding=1) + 0.3 * sigma.log1p())
        queries = hidden.flatten(2).transpose(1, 2) @ self.query.T
        attention = (queries @ (embeddings @ self.key.T).transpose(1, 2)).softmax(-1)
        mixed = (attention @ (embeddings @ self.value.T)).transpose(1, 2).reshape(hidden.shape)
        return 0.7 * F.conv2d(z, self.residual) + 0.3 * F.conv2d(hidden + self.text * mixed, self.out, padding=1)

    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        scale = latent_scale(sigma)
        results = []
        for conditioning in conditionings:
            if self.flow:
                y, s = x / (1 + sigma), sigma / (1 + sigma)
                results.append(y - s * self.raw(y, s, conditioning.embeddings))
                continue
            raw = self.raw(x / scale, sigma, conditioning.embeddings)
            results.append(x / scale**2 - raw * sigma / scale if self.prediction == "v" else x - sigma * raw)
        return results, AttentionMaps()
