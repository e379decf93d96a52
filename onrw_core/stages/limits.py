"""Limits of visibility, and the scale of a residual at which one of them is reached.

Quality is SSIMULACRA2. Since a residual that is optimised against one metric exploits its weaknesses, three more limits
belong to each quality: on the norm of the local visible error, on its maximum, and on the change of any one pixel.

The gradient of a loss through that scale shapes the residual. With V the visual load and r the residual at its
limit, V is kept while the residual changes by dr if the scale changes by

    ds / s = -<grad V, dr> / <grad V, r>,

so a step that lowers the loss but is visible reduces the scale, and the optimisation changes the pixels with the
largest gain for the reader relative to their visibility.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..imaging.rounding import LEVELS
from ..imaging.ssimulacra2 import Ssimulacra2
from ..imaging.visible_error import VisibleError, norm

__all__ = ["Limits", "ScaleToLimits", "VisualLoad", "limits"]

# SSIMULACRA2: norm and maximum of the visible error, change of one pixel in levels of 255. The norms are calibrated
# against butteraugli's 3-norm: docs/quality.md.
TABLE = {
    70.0: (1.4, 6.0, 32.0),
    80.0: (1.05, 4.3, 24.0),
    85.0: (0.82, 3.6, 20.0),
    90.0: (0.60, 2.7, 16.0),
    95.0: (0.42, 1.8, 11.0),
}
MAXIMUM = 12  # power of the sum that approximates a maximum; with three terms at most 10 % above it
FIRST_RMS = 0.004  # in [0, 1]: a residual of 48 dB, where the search for the first scale begins
FIRST_STEPS = 4
SIMILAR = 0.8  # correlation with the previous residual below which the search begins again
USES = 2  # uses of a gradient before it is computed again
LEAST_SLOPE = 0.1  # of the load over the logarithm of the strength, relative to the load
LARGEST_STEP = 2.5  # largest factor of the scale in one step
TINY = 1e-20


@dataclass(frozen=True)
class Limits:
    """Limits of a residual.

    Attributes:
        quality: Least SSIMULACRA2.
        norm: Largest norm of the local visible error, see `visible_error.norm`.
        worst: Largest local visible error.
        peak: Largest change of one channel of one pixel, in [0, 1].
    """

    quality: float
    norm: float
    worst: float
    peak: float


def limits(quality: float) -> Limits:
    """The limits of a SSIMULACRA2 score, interpolated between, and kept beyond, the scores of the table."""
    if not 0 < quality < 100:
        raise ValueError(f"quality is {quality}; give a SSIMULACRA2 score between 0 and 100, such as 90")
    scores = sorted(TABLE)
    above = next((score for score in scores if score >= quality), scores[-1])
    below = next((score for score in reversed(scores) if score <= quality), scores[0])
    share = (quality - below) / (above - below) if above > below else 0.0
    between = [a + share * (b - a) for a, b in zip(TABLE[below], TABLE[above], strict=True)]
    return Limits(quality, between[0], between[1], between[2] / LEVELS)


class VisualLoad:
    """Utilisation of the limits by a marked image: 1 if a limit is reached."""

    def __init__(self, original: Tensor, bounds: Limits, weight: Tensor | None = None) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1].
            bounds: The limits.
            weight: (1, 1, H, W), not negative: the weight of each pixel, such as its opacity; None for equal weights.
        """
        self.bounds = bounds
        self._score = Ssimulacra2(original, weight)
        self._visible = VisibleError(original)
        self._weight = None if weight is None else torch.nn.functional.avg_pool2d(weight, 2, ceil_mode=True)

    def __call__(self, marked: Tensor) -> Tensor:
        """A scalar, at least the largest of the three shares and at most 10 % above it; differentiable.

        Args:
            marked: (1, 3, H, W).
        """
        error = self._visible.map(marked)
        shares = torch.stack(
            [
                (100 - self._score(marked)[0]) / (100 - self.bounds.quality),
                norm(error, self._weight)[0] / self.bounds.norm,
                error.amax() / self.bounds.worst,
            ]
        )
        return shares.pow(MAXIMUM).sum() ** (1 / MAXIMUM)


class ScaleToLimits:
    """The scale at which a residual reaches its limits, with its derivative.

    Residuals of successive iterations differ little. So each search starts from the last strength, one Newton step is
    enough, and a gradient of the load is used for two residuals.
    """

    def __init__(self, original: Tensor, bounds: Limits, weight: Tensor | None = None) -> None:
        """
        Args:
            original, bounds, weight: See `VisualLoad`.
        """
        self._original = original
        self._load = VisualLoad(original, bounds, weight)
        self._strength = FIRST_RMS  # root mean square of the last residual at its limits
        self._unit: Tensor | None = None  # the residual of the gradient, scaled to root mean square 1
        self._gradient: Tensor | None = None  # of the load there
        self._uses = 0  # of the gradient

    def __call__(self, residual: Tensor) -> Tensor:
        """A scalar, differentiable in the residual (1, 3, H, W)."""
        fixed = residual.detach()
        rms = fixed.square().mean().sqrt().clamp(min=TINY)
        unit = fixed / rms
        if self._unit is None or (unit * self._unit).mean() < SIMILAR:
            for _ in range(FIRST_STEPS):
                self._newton_step(unit)
        elif self._uses >= USES:
            self._newton_step(unit)
        self._uses += 1
        assert self._gradient is not None
        scale = self._strength / rms
        slope = (self._gradient * fixed).sum().clamp(min=TINY)
        return scale * (1 - (self._gradient * (residual - fixed)).sum() / slope)

    def _newton_step(self, unit: Tensor) -> None:
        """Update the strength at which a residual of root mean square 1 reaches its limits; store the gradient."""
        self._unit, self._uses = unit, 0
        scaled = (self._strength * unit).requires_grad_()
        with torch.enable_grad():
            load = self._load(self._original + scaled)
            (self._gradient,) = torch.autograd.grad(load, scaled)
        slope = (self._gradient * scaled).sum()  # derivative of the load in the logarithm of the strength
        if slope < LEAST_SLOPE * load:
            # The metrics are steep near black, where a step can lower the load: its derivative says nothing there.
            self._gradient, slope = torch.zeros_like(self._gradient), load.detach()
        # The load is about proportional to the strength to the power slope / load.
        step = (-load.detach().log() * load.detach() / slope.detach()).exp()
        self._strength *= float(step.clamp(1 / LARGEST_STEP, LARGEST_STEP))
