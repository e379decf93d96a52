"""What an extractor is: a frozen, differentiable reader of k bits from an image of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Geometry

__all__ = ["TEMPERATURE", "WINDOW", "Extractor"]

TEMPERATURE = 10.0  # of the message loss, arXiv 2601.17388
BOUND = 0.7  # of the generalised cross-entropy, between 0 (cross-entropy) and 1 (share of wrong bits)
PULL = 0.1  # of the cross-entropy beside it, on bits that are far
WINDOW = 160 * 160  # pixels: many times what a decoder sees from one position, and a third of a second of one core


class Extractor(ABC):
    """Reads bits from images.

    Attributes:
        name: Short name, e.g. "keyed".
        num_bits: Raw bits in the mark.
        window: Pixels that an optimisation shows it at once, at random places; None for whole pictures. For networks
            that average over all positions: they read a part as they read the whole, and cost by the pixel.
    """

    name: str
    num_bits: int
    window: int | None = None

    def to(self, device: str | torch.device) -> Extractor:
        """Move the networks in it, if there are any; patterns follow the images."""
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    @abstractmethod
    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Soft bits of images whose geometry is known.

        Args:
            images: (B, 3, H, W) in [0, 1], any size.
            geometry: How the images lie in the frame that was marked; None for unchanged. Extractors that bring
                their own invariance ignore it.

        Returns:
            (B, num_bits), positive = bit 1, differentiable.
        """

    def loss_and_logits(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        """Message loss per image, (B,), and the soft bits, (B, num_bits), from one reading.

        The loss is the generalised cross-entropy, (1 - p^q) / q, of the probability p of the right bit at temperature
        10 (arXiv 2601.17388; arXiv 1805.07836), with a little of the cross-entropy. The former is bounded, so that
        bits which an attack puts out of reach do not drown those that can still be won; the latter goes on pulling
        at them, since nobody knows how large another's logits are. An extractor with a better loss has it here.

        Args:
            images: (B, 3, H, W) in [0, 1].
            bits: (num_bits,) of 0/1.
            geometry: See `logits`.
        """
        logits = self.logits(images, geometry)
        right = F.logsigmoid(TEMPERATURE * (2 * bits.to(logits) - 1) * logits)  # logarithm of p
        loss = -torch.expm1(BOUND * right) / BOUND - PULL * right
        return loss.mean(1), logits

    def loss(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Message loss per image, (B,); see `loss_and_logits`."""
        return self.loss_and_logits(images, bits, geometry)[0]
