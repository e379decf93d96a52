"""Sparing: the highest quality at which a finished watermark still holds every attack with a margin.

The optimisation spends all of the requested quality. Where the message needs less, composition at a higher quality
shows less. A watermark holds with a margin if all bits are right under every drawn attack after its residual was
multiplied by `MARGIN`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..attacks import TrainingMix
from ..extractors.base import Extractor
from ..imaging.rounding import round_8bit
from .composition import Composition
from .quality import HIGHEST
from .working_image import working_image

__all__ = ["MARGIN", "spared"]

MARGIN = 0.8  # factor of the residual, about 2 dB
DRAWS = 24  # attacks, two of each kind that matters
RESOLUTION = 0.5  # of the quality


def spared(
    composed: Callable[[float], Composition],
    quality: float,
    extractor: Extractor,
    bits: Tensor,
    mix: TrainingMix,
    generator: torch.Generator,
    size: int,
) -> Composition:
    """Compose at the highest quality, `quality` to `quality.HIGHEST`, at which the watermark holds with the margin.

    Args:
        composed: Composition at a quality.
        quality: The requested quality; the result if the watermark does not hold above it.
        extractor: Reads the message, with the geometry given.
        bits: The message, (k,).
        mix: Source of the attacks; the same are used at each quality.
        generator: Draws the attacks.
        size: The working size at which attacks are applied, see `working_image`.
    """
    attacks = mix.draw(generator, DRAWS)
    seed = int(torch.randint(2**31, (), generator=generator))

    def holds(found: Composition) -> bool:
        weaker = round_8bit(found.original + MARGIN * found.residual)
        image = working_image(weaker[0], size)
        noise = torch.Generator().manual_seed(seed)
        for attack in attacks:
            attacked = attack(image, noise)
            _, logits = extractor.loss_and_logits(attacked.images, bits, attacked.geometry)
            if not torch.equal(logits[0] > 0, bits.to(logits.device).bool()):
                return False
        return True

    with torch.no_grad():
        best, low, high = composed(quality), quality, HIGHEST
        if not holds(best):
            return best
        while high - low > RESOLUTION:
            middle = (low + high) / 2
            found = composed(middle)
            if holds(found):
                best, low = found, middle
            else:
                high = middle
        return best
