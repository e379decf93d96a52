"""What an extractor is: a frozen, differentiable reader of k bits from an image of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Geometry

__all__ = ["Extractor"]

TEMPERATURE = 10.0  # of the message loss, arXiv 2601.17388


class Extractor(ABC):
    """Reads bits from images.

    Attributes:
        name: Short name, e.g. "keyed".
        num_bits: Raw bits in the mark.
    """

    name: str
    num_bits: int

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

    def loss_and_logits(
        self, images: Tensor, bits: Tensor, geometry: Geometry | None = None
    ) -> tuple[Tensor, Tensor]:
        """Message loss per image, (B,), and the soft bits, (B, num_bits), from one reading.

        The loss is the cross-entropy of the logits at temperature 10 (arXiv 2601.17388). An extractor with a better
        one has it here.

        Args:
            images: (B, 3, H, W) in [0, 1].
            bits: (num_bits,) of 0/1.
            geometry: See `logits`.
        """
        logits = self.logits(images, geometry)
        target = bits.to(logits).expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(TEMPERATURE * logits, target, reduction="none").mean(1)
        return loss, logits

    def loss(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Message loss per image, (B,); see `loss_and_logits`."""
        return self.loss_and_logits(images, bits, geometry)[0]
