"""Regeneration: the picture is made anew by a model, and the mark has to be in what stays (Zhao et al. 2023).

- vae-own: round trip through the autoencoder that the mark was made with;
- vae-foreign: round trip through another one, which is never used for marking;
- purify: noise of a given sigma is added to the latent, and the diffusion model takes it away again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import Attacked
from ..geometry import Geometry
from ..mini import Mini, MiniAutoencoder
from ..mini.weights import load_autoencoder
from ..model import Autoencoder
from ..ode import euler, schedule
from ..rounding import round_8bit

__all__ = ["PURIFY_SIGMAS", "Regeneration", "regenerations"]

PURIFY_SIGMAS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
PURIFY_STEPS = 6
MULTIPLE = 64


@dataclass(frozen=True)
class Regeneration:
    """A model as an attack."""

    name: str
    function: Callable[[Tensor, torch.Generator], Tensor]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Attacked:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        with torch.no_grad():
            result = self.function(padded, generator)[..., :height, :width]
        return Attacked(round_8bit(result.cpu()), Geometry.identity())

    def __str__(self) -> str:
        return self.name


def regenerations(mini: Mini, device: str = "cpu") -> list[Regeneration]:
    """All of them that this installation has the weights for."""
    attacks = [Regeneration("vae-own", _round_trip(mini.autoencoder, device))]
    try:
        foreign = MiniAutoencoder(load_autoencoder(device=device, foreign=True))
        attacks.append(Regeneration("vae-foreign", _round_trip(foreign, device)))
    except FileNotFoundError:
        pass  # the foreign weights are only there to attack with
    return attacks + [
        Regeneration(f"purify={sigma:g}", _purify(mini, sigma, device)) for sigma in PURIFY_SIGMAS
    ]


def _round_trip(autoencoder: Autoencoder, device: str) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda images, _: autoencoder.decode(autoencoder.encode(images.to(device)))


def _purify(mini: Mini, sigma: float, device: str) -> Callable[[Tensor, torch.Generator], Tensor]:
    prompt = mini.encode("")

    def run(images: Tensor, generator: torch.Generator) -> Tensor:
        latent = mini.autoencoder.encode(images.to(device))
        sigmas = schedule(mini.model.sigmas, PURIFY_STEPS, sigma)
        x = latent + sigmas[0] * torch.randn(latent.shape, generator=generator).to(latent)
        for current, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            (x0,), _ = mini.model.denoise(x, current, [prompt])
            x = euler(x, x0, current, following)
        return mini.autoencoder.decode(x)

    return run
