"""The regeneration suite: a model regenerates the image (see `onrw_core.attacks.regeneration`).

- vae-own: round trip through the autoencoder that the watermark was made with;
- vae-foreign: round trip through another one, which is never used for marking;
- purify: noise of a given sigma is added to the latent, and the diffusion model takes it away again. Over the strength,
  this is a curve, and where it crosses one half, presence of the watermark is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attacks import Attacked
from ..attacks.regeneration import Regeneration, purification, round_trip
from ..mini import Mini, MiniAutoencoder
from ..mini.weights import load_autoencoder

__all__ = ["PURIFY", "PURIFY_SIGMAS", "lost_at", "regenerations"]

PURIFY_SIGMAS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
PURIFY_STEPS = 6
PURIFY = "purify="


@dataclass(frozen=True)
class _Evaluated:
    """A regeneration on its device, without gradient."""

    regeneration: Regeneration
    device: str

    def __call__(self, images: Tensor, generator: torch.Generator) -> Attacked:
        with torch.no_grad():
            result = self.regeneration(images.to(self.device), generator)
        return Attacked(result.images.cpu(), result.geometry)

    def __str__(self) -> str:
        return str(self.regeneration)


def regenerations(
    mini: Mini, device: str = "cpu", sigmas: Sequence[float] = PURIFY_SIGMAS, tell: Callable[[str], None] = print
) -> list[Callable]:
    """The attacks of the suite.

    Args:
        mini: The embedded model.
        device: Where it is.
        sigmas: Strengths of the purification.
        tell: Called with a line if the foreign autoencoder's weights are missing.
    """
    attacks = [round_trip(mini.autoencoder, name="vae-own")]
    try:
        foreign = MiniAutoencoder(load_autoencoder(device=device, foreign=True))
        attacks.append(round_trip(foreign, name="vae-foreign"))
    except FileNotFoundError as error:
        tell(f"without vae-foreign: {error}")
    prompt = mini.encode("")
    attacks += [purification(mini.model, mini.autoencoder, prompt, sigma, PURIFY_STEPS) for sigma in sigmas]
    return [_Evaluated(attack, device) for attack in attacks]


def lost_at(curve: Sequence[tuple[float, float]]) -> float | None:
    """The sigma at which a rate falls below one half, interpolated linearly between the measured ones.

    Args:
        curve: (sigma, rate of presence) by ascending sigma.

    Returns:
        None where it never falls so far; the least sigma where it is below one half already there.
    """
    before: tuple[float, float] | None = None
    for sigma, rate in curve:
        if rate < 0.5:
            if before is None:
                return sigma
            fraction = (before[1] - 0.5) / (before[1] - rate)
            return before[0] + fraction * (sigma - before[0])
        before = (sigma, rate)
    return None
