"""Regeneration attacks: the image is reconstructed by a generative model (Zhao et al. 2023, arXiv 2306.01953).

- round trip: through an autoencoder, with noise added to the latent;
- purification: noise of level sigma is added to the latent and removed by a diffusion model.

Both are differentiable, so that the optimisation can draw them. `regenerations` uses the model that embeds the
watermark, in one denoising step and at small random strengths. Other autoencoders are reserved for the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.model import Autoencoder, Conditioning, DiffusionModel
from ..diffusion.ode import euler, schedule
from ..imaging.geometry import Geometry
from ..imaging.rounding import round_8bit
from .base import Attack, Attacked, or_default, uniform

__all__ = ["Regeneration", "RegenerationRange", "purification", "regenerations", "round_trip"]

MULTIPLE = 64  # of the sides: UNets halve latents of 1/8 up to three times
NOISE = (0.0, 0.15)  # standard deviation on a latent of unit variance
SIGMA = (0.03, 1.2)  # of purification
WEIGHT = 2.0  # of the round trip, as JPEG has in the mix
PURIFICATION_WEIGHT = 4.0  # docs/quality.md, Regeneration

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Regeneration(Attack):
    """An attack by an autoencoder or a diffusion model.

    Attributes:
        name: "vae" or "purify", with a suffix where several models are in use.
        strength: Standard deviation of the noise.
        function: (padded images, standard normal noise shaped like their latent) -> images, about [0, 1].
        autoencoder: Determines the shape of that latent.
    """

    function: Function
    autoencoder: Autoencoder

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Attacked:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        size = (side // self.autoencoder.factor for side in padded.shape[-2:])
        shape = (len(images), self.autoencoder.channels, *size)
        noise = torch.randn(shape, generator=or_default(generator)).to(images)
        result = self.function(padded, noise)[..., :height, :width]
        return Attacked(round_8bit(result), Geometry.identity())

    def __str__(self) -> str:
        return f"{self.name}={self.strength:g}" if self.strength else self.name


def round_trip(autoencoder: Autoencoder, noise: float = 0.0, name: str = "vae") -> Regeneration:
    """Encode and decode.

    Args:
        autoencoder: Any autoencoder.
        noise: Standard deviation of the noise added to the latent.
        name: See `Regeneration`.
    """

    def function(images: Tensor, draw: Tensor) -> Tensor:
        return autoencoder.decode(autoencoder.encode(images) + noise * draw)

    return Regeneration(name, noise, function, autoencoder)


def purification(
    model: DiffusionModel, autoencoder: Autoencoder, prompt: Conditioning, sigma: float, steps: int = 1
) -> Regeneration:
    """Add noise to the latent and denoise.

    Args:
        model: The denoiser.
        autoencoder: The model's autoencoder.
        prompt: Its conditioning; the null conditioning for none.
        sigma: Noise level, within the model's range.
        steps: Number of denoising steps.
    """

    def function(images: Tensor, draw: Tensor) -> Tensor:
        latent = autoencoder.encode(images)
        sigmas = schedule(model.sigmas, steps, sigma)
        x = latent + sigmas[0] * draw
        for current, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            (x0,), _ = model.denoise(x, current, [prompt])
            x = euler(x, x0, current, following)
        return autoencoder.decode(x)

    return Regeneration("purify", sigma, function, autoencoder)


@dataclass(frozen=True)
class RegenerationRange:
    """An entry of a training mix: a regeneration attack with a strength drawn uniformly from [low, high).

    Attributes:
        name: Kind of attack.
        low: Least strength.
        high: Greatest strength.
        make: Strength -> attack.
        weight: Relative probability within the mix.
    """

    name: str
    low: float
    high: float
    make: Callable[[float], Regeneration]
    weight: float = WEIGHT

    def draw(self, generator: torch.Generator) -> Regeneration:
        return self.make(uniform(self.low, self.high, generator))


def regenerations(
    model: DiffusionModel, autoencoder: Autoencoder, prompt: Conditioning
) -> tuple[RegenerationRange, ...]:
    """The regeneration attacks of the training mix "regeneration".

    Args:
        model: The model that embeds the watermark.
        autoencoder: Its autoencoder.
        prompt: Conditioning of the purification; the null conditioning, for models that have one.
    """
    low, high = max(SIGMA[0], float(model.sigmas[0])), min(SIGMA[1], float(model.sigmas[-1]))
    return (
        RegenerationRange("vae", *NOISE, lambda noise: round_trip(autoencoder, noise)),
        RegenerationRange(
            "purify", low, high, lambda sigma: purification(model, autoencoder, prompt, sigma), PURIFICATION_WEIGHT
        ),
    )
