"""Regeneration: a model makes the picture anew, and the mark has to be in what stays (Zhao et al. 2023, 2306.01953).

- round trip: through an autoencoder, with some noise on the latent;
- purification: noise of level sigma is added to the latent, and a diffusion model takes it away again.

Both are differentiable, so that an optimisation can see what it is measured by later: `regenerations` are attacks made
of the model that marks, in one step and at random small strengths. Others' autoencoders are left to the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attacks import Attacked
from .attacks.base import or_default, uniform
from .geometry import Geometry
from .model import Autoencoder, Conditioning, DiffusionModel
from .ode import euler, schedule
from .rounding import round_8bit
from .trajectory import Inversion

__all__ = ["Regeneration", "RegenerationRange", "purification", "regenerations", "round_trip"]

MULTIPLE = 64  # of the sides: UNets halve latents of 1/8 up to three times
NOISE = (0.0, 0.15)  # standard deviation on a latent of unit variance
SIGMA = (0.03, 0.6)  # of purification
WEIGHT = 2.0  # of each kind, as JPEG has in the mix

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Regeneration:
    """A model as an attack; it is called as an `Attack` is.

    Attributes:
        name: "vae" or "purify", with more where several are in use.
        strength: Its noise.
        function: (padded images, standard normal noise shaped like their latent) -> images, about [0, 1].
        autoencoder: Says how large that latent is.
    """

    name: str
    strength: float
    function: Function
    autoencoder: Autoencoder

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Attacked:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        size = tuple(side // self.autoencoder.factor for side in padded.shape[-2:])
        shape = (len(images), self.autoencoder.channels, *size)
        noise = torch.randn(shape, generator=or_default(generator)).to(images)
        result = self.function(padded, noise)[..., :height, :width]
        return Attacked(round_8bit(result), Geometry.identity())

    def __str__(self) -> str:
        return f"{self.name}={self.strength:g}" if self.strength else self.name


def round_trip(autoencoder: Autoencoder, noise: float = 0.0, name: str = "vae") -> Regeneration:
    """Encode and decode.

    Args:
        autoencoder: Any.
        noise: Standard deviation of what is added to the latent.
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
        model: Takes the noise away.
        autoencoder: Its autoencoder.
        prompt: What it is told; the null conditioning for nothing.
        sigma: Noise level, within the model's.
        steps: Of the denoising.
    """

    def function(images: Tensor, draw: Tensor) -> Tensor:
        latent = autoencoder.encode(images)
        sigmas = schedule(model.sigmas, steps, sigma)
        x = latent * (1 - sigmas[0] if model.flow else 1) + sigmas[0] * draw
        for current, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            (x0,), _ = model.denoise(x, current, [prompt])
            x = euler(x, x0, current, following)
        return autoencoder.decode(x)

    return Regeneration("purify", sigma, function, autoencoder)


@dataclass(frozen=True)
class RegenerationRange:
    """An entry of a training mix, as `attacks.suites.Range`, whose attacks a model makes.

    Attributes:
        name: Kind of attack.
        low: Least strength.
        high: Greatest strength.
        make: Strength -> attack.
        weight: How often it is drawn, relative to the others of the mix.
    """

    name: str
    low: float
    high: float
    make: Callable[[float], Regeneration]
    weight: float = WEIGHT

    def draw(self, generator: torch.Generator) -> Regeneration:
        return self.make(uniform(self.low, self.high, generator))


def regenerations(
    model: DiffusionModel, autoencoder: Autoencoder, inversion: Inversion
) -> tuple[RegenerationRange, ...]:
    """What the mix "regeneration" has beside the other attacks, made of the model that marks.

    Args:
        model: The model that made the inversion.
        autoencoder: Its autoencoder.
        inversion: Has the null conditioning; the prompt is used where the model has none.
    """
    prompt = inversion.positive if inversion.null is None else inversion.null
    low, high = max(SIGMA[0], float(model.sigmas[0])), min(SIGMA[1], float(model.sigmas[-1]))
    return (
        RegenerationRange("vae", *NOISE, lambda noise: round_trip(autoencoder, noise)),
        RegenerationRange("purify", low, high, lambda sigma: purification(model, autoencoder, prompt, sigma)),
    )
