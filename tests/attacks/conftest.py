"""Images and generators that the tests of the attacks share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.rounding import round_8bit


@pytest.fixture
def generator() -> Callable[[int], torch.Generator]:
    """A fresh generator of a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """Smooth blobs of all colours about the middle, few of them saturated, (2, 3, 96, 120)."""
    noise = torch.randn(2, 3, 96, 120, generator=torch.Generator().manual_seed(3))
    smooth = gaussian_blur(noise, 5)
    return round_8bit(0.5 + 0.12 * smooth / smooth.std())
