"""Warm start of the optimisation: a few steps on the image, encoded as a change of the latent.

The first iterations of the optimisation mainly find the pattern of the message, for which neither denoising nor
decoding is needed. So a residual is first optimised on the image, under the same composition and attacks, and the
encoder maps it to a change of the latent:

    delta = E(decoded + a * residual) - E(decoded)

The optimisation through the model starts from this change. With the keyed extractor such a step costs a tenth of an
iteration, and six steps replace about four iterations (measured on photos of 512 pixels with the embedded model).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import TrainingMix
from ..diffusion.model import Autoencoder
from ..extractors.base import Extractor
from .composition import Composer

__all__ = ["INITIAL_RMS", "STEPS", "on_image", "warm_start"]

# Root mean square of a random start: composition scales the residual, so it must not be zero.
INITIAL_RMS = 1e-3

ATTACKS = 2  # random attacks per step
STEPS = 6
STEP = 0.01  # root mean square of a step; composition scales the residual, so only their ratios matter
AMPLIFIED = 4.0  # a residual of 42 dB is small compared with the rounding of an encoder in half precision
STRENGTH = 0.15  # root mean square of the result, about that of optimisations without a warm start
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
    """Optimise a residual on the image and encode it as a change of the latent.

    Args:
        autoencoder: The frozen autoencoder.
        decoded: The decoded original branch, (1, 3, H, W); the working image is its upper left part.
        composer: Composition at the working size, in mode "residual".
        extractor: The extractor of the message.
        bits: (num_bits,) of 0/1.
        mix: Distribution of the attacks.
        generator: Draws the attacks and the initial residual.
        steps: Number of steps on the image.

    Returns:
        (1, C, h, w) of root mean square `STRENGTH`, in the latent's unit-variance scale.
    """
    residual = on_image(decoded, composer, extractor, bits, mix, generator, steps)
    height, width = residual.shape[-2:]
    below = decoded[..., :height, :width]
    with torch.no_grad():
        change = AMPLIFIED * (composer(below + residual, below) - composer.original)
        change = F.pad(change, (0, decoded.shape[-1] - width, 0, decoded.shape[-2] - height))
        delta = autoencoder.encode(decoded + change) - autoencoder.encode(decoded)
        return delta * (STRENGTH / delta.square().mean().sqrt().clamp(min=TINY))


def on_image(
    decoded: Tensor,
    composer: Composer,
    extractor: Extractor,
    bits: Tensor,
    mix: TrainingMix,
    generator: torch.Generator,
    steps: int = STEPS,
) -> Tensor:
    """Optimise a residual on the image, without a model.

    Args:
        decoded: What the residual is added to, (1, 3, H, W); the working image is its upper left part.

    The other arguments are those of `warm_start`.

    Returns:
        (1, 1 or 3, h, w), of the size of the working image, any scale.
    """
    height, width = composer.original.shape[-2:]
    below = decoded[..., :height, :width]
    colours = 1 if composer.options.luma_only else decoded.shape[1]
    residual = (torch.randn(1, colours, height, width, generator=generator) * INITIAL_RMS).to(decoded).requires_grad_()
    for _ in range(steps):
        marked = composer(below + residual, below)
        losses = []
        for attack in mix.draw(generator, ATTACKS):
            attacked = attack(marked, generator)
            losses.append(extractor.loss(attacked.images, bits, attacked.geometry).mean())
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), residual)
        with torch.no_grad():
            residual -= STEP * gradient / gradient.square().mean().sqrt().clamp(min=TINY)
    return residual.detach()
