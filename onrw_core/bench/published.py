"""The published optimisation loop (arXiv 2601.17388), for comparison.

In every iteration both branches, original and marked, are denoised with classifier-free guidance in full and every
attention map is kept; one random attack; loss = 100 x cross-entropy at temperature 10 + 20 x MSE + 80 x MSE of the
self-attention; AdamW on the noise at a constant step size. Composition, target PSNR and extractor are those that it is
compared with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import training_mix
from ..diffusion.attention import record_rule, self_attention_loss
from ..diffusion.model import AttentionControl, AttentionMaps, Autoencoder, DiffusionModel
from ..diffusion.ode import euler
from ..extractors.base import TEMPERATURE, Extractor
from ..stages.composition import Composer, CompositionOptions
from ..stages.constrained_denoising import perturbed
from ..stages.inversion_record import Inversion
from ..stages.warm_start import INITIAL_RMS

__all__ = ["published_loop"]

MESSAGE_WEIGHT, IMAGE_WEIGHT, ATTENTION_WEIGHT = 100.0, 20.0, 80.0


def published_loop(
    model: DiffusionModel,
    autoencoder: Autoencoder,
    inversion: Inversion,
    image: Tensor,
    extractor: Extractor,
    bits: Tensor,
    *,
    learning_rate: float,
    target_psnr: float,
    luma_only: bool,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """The published optimisation, which does not end: the caller stops it.

    Args:
        model: The frozen model that made the inversion.
        autoencoder: Its autoencoder.
        inversion: The inverted image.
        image: The image, (1, 3, H, W) in [0, 1].
        extractor: Reads the message.
        bits: (extractor.num_bits,) of 0/1.
        learning_rate: Learning rate of AdamW, in the latent's unit-variance scale.
        target_psnr: In dB.
        luma_only: As in the composition, see `Composer`.
        generator: Draws the attacks and the first change.

    Yields:
        The marked image after each iteration, (1, 3, H, W).
    """
    height, width = image.shape[-2:]
    composer = Composer(image, CompositionOptions(target_psnr=target_psnr, luma_only=luma_only))
    start = inversion.latents[0]
    delta = (torch.randn(start.shape, generator=generator) * INITIAL_RMS).to(start).requires_grad_()
    optimiser = torch.optim.AdamW([delta], learning_rate, weight_decay=0.0)
    mix = training_mix()
    while True:
        with torch.no_grad():
            latent, reference = _branch(model, inversion, start)
            decoded_original = autoencoder.decode(latent)[..., :height, :width]
        latent, maps = _branch(model, inversion, perturbed(inversion, delta))
        marked = composer(autoencoder.decode(latent)[..., :height, :width], decoded_original)
        (attack,) = mix.draw(generator, 1)
        attacked = attack(marked, generator)
        # The paper's loss, instead of the extractor's.
        logits = TEMPERATURE * extractor.logits(attacked.images, attacked.geometry)
        message_loss = F.binary_cross_entropy_with_logits(logits, bits.to(logits).expand_as(logits))
        attention_loss = torch.stack([self_attention_loss(m, r) for m, r in zip(maps, reference, strict=True)]).mean()
        loss = (
            MESSAGE_WEIGHT * message_loss
            + IMAGE_WEIGHT * (marked - image).square().mean()
            + ATTENTION_WEIGHT * attention_loss
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield marked.detach()


def _branch(model: DiffusionModel, inversion: Inversion, x: Tensor) -> tuple[Tensor, list[AttentionMaps]]:
    """Denoise to the clean latent; every map is recorded, those of the constraint are compared."""
    rule = record_rule(tuple(x.shape[-2:]), model.factor)
    everything = AttentionControl(lambda kind, tokens: True)
    kept = []
    for i in range(inversion.steps):
        conditionings = [inversion.positive, inversion.null_at(i)]
        (x0, x0_null), maps = model.denoise(x, inversion.sigmas[i], conditionings, everything)
        x = euler(x, x0_null + inversion.guidance * (x0 - x0_null), inversion.sigmas[i], inversion.sigmas[i + 1])
        compared = {k: v for k, v in maps.self_attention.items() if rule("self", v.shape[-2])}
        kept.append(AttentionMaps(compared, maps.cross_attention, maps.sizes))
    return x, kept
