"""The colour projections that a mark is read from."""

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.colour_projection import projections
from onrw_core.imaging.metrics import LUMA_COLOUR, luminance


def photo(colour: float, seed: int = 0) -> torch.Tensor:
    """Texture whose colours follow its brightness but for a part `colour`, (1, 3, 128, 160)."""
    generator = torch.Generator().manual_seed(seed)
    grey, other = (torch.randn(1, n, 128, 160, generator=generator) for n in (1, 3))
    return 0.5 + 0.06 * F.avg_pool2d(grey + colour * other, 3, 1, 1)


def test_a_mark_is_as_strong_in_both_and_the_photo_is_not():
    image = photo(0.1)
    mark = 0.005 * torch.randn(1, 1, 128, 160, generator=torch.Generator().manual_seed(1))
    discriminant, grey = projections(image + mark * torch.tensor(LUMA_COLOUR)[:, None, None])
    assert torch.allclose(grey, luminance(image)[0] + mark[0], atol=1e-5)
    left = discriminant - mark[0]  # the photo's part, up to what the mark itself changes in the mix
    assert left.std() < 0.3 * luminance(image).std()
    assert F.cosine_similarity((discriminant - discriminant.mean()).flatten(), mark.flatten(), 0) > 0.5


def test_without_colour_nothing_of_the_photo_is_left():
    discriminant, _ = projections(photo(0.0).mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert discriminant.std() < 1e-4


@pytest.mark.parametrize("size", [(8, 200), (15, 15)])
def test_small_pictures_have_their_luminance_alone(size):
    image = torch.rand(1, 3, *size)
    assert torch.allclose(projections(image), luminance(image), atol=1e-6)


def test_blank_pictures_are_finite():
    assert projections(torch.full((1, 3, 64, 64), 0.3)).isfinite().all()
