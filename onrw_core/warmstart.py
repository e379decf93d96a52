"""A first change of the latent that carries the message already: a few steps on the picture, then the encoder.

Nearly all that the first iterations of the optimisation find is which pattern the extractor wants, and for that neither
denoising nor decoding is needed. So a residual is optimised in the picture itself, under the same composition and
attacks, and the encoder says which change of the latent comes nearest to it:

    delta = E(decoded + a * residual) - E(decoded)

The optimisation goes on from there, through the model. With the keyed extractor one such step costs a tenth of an
iteration, and six of them stand for about four (measured on photos of 512 pixels with the embedded model).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attacks import TrainingMix
from .compose import Composer
from .extractors.base import Extractor
from .model import Autoencoder

__all__ = ["STEPS", "warm_start"]

ATTACKS = 2  # a step
STEPS = 6
STEP = 0.01  # root mean square of a step; composition scales the residual, so only their ratios matter
AMPLIFIED = 4.0  # a residual of 42 dB is little beside what an encoder in half precision rounds
STRENGTH = 0.15  # root mean square of the result, where optimisations from nothing arrive
INITIAL = 1e-3  # a seeded start: at exactly zero the composed residual has no direction
TINY = 1e-20


def warm_start(
    autoencoder: Autoencoder,
    decoded: Tensor,
    composer: Composer,
    extractor: Extractor,
    bits: Tensor,
    mix: TrainingMix,
    generator: torch.Generator,
    steps: int = STEPS,
) -> Tensor:
    """A change of the latent to begin with.

    Args:
        autoencoder: The frozen autoencoder.
        decoded: The original branch's picture, (1, 3, H, W); the working picture is its upper left corner.
        composer: Composition at the working size, in mode "residual".
        extractor: Reads the message.
        bits: (num_bits,) of 0/1.
        mix: What attacks are drawn from.
        generator: Draws attacks and the start.
        steps: On the picture.

    Returns:
        (1, C, h, w) of root mean square `STRENGTH`, in the latent's unit-variance scale.
    """
    height, width = composer.original.shape[-2:]
    below = decoded[..., :height, :width]
    colours = 1 if composer.luma_only else decoded.shape[1]
    residual = (torch.randn(1, colours, height, width, generator=generator) * INITIAL).to(decoded).requires_grad_()
    for _ in range(steps):
        marked = composer(below + residual, below)
        losses = []
        for attack in mix.draw(generator, ATTACKS):
            attacked = attack(marked, generator)
            losses.append(extractor.loss(attacked.images, bits, attacked.geometry).mean())
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), residual)
        with torch.no_grad():
            residual -= STEP * gradient / gradient.square().mean().sqrt().clamp(min=TINY)
    with torch.no_grad():
        change = AMPLIFIED * (composer(below + residual, below) - composer.original)
        change = F.pad(change, (0, decoded.shape[-1] - width, 0, decoded.shape[-2] - height))
        delta = autoencoder.encode(decoded + change) - autoencoder.encode(decoded)
        return delta * (STRENGTH / delta.square().mean().sqrt().clamp(min=TINY))
