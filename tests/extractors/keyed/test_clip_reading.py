"""Frames of one clip: their evidence is pooled, also where the scene moves."""

import pytest
import torch

from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.payload.keys import Key

EXTRACTOR = KeyedExtractor(Key(bytes(range(32))), 48, place=(3, 4))
BITS = torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(0))
SIDE, COUNT, STEP = 256, 4, 9


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """A pan over a marked scene, each frame with its own strong noise."""
    generator = torch.Generator().manual_seed(1)
    size = SIDE, SIDE + STEP * (COUNT - 1)
    soft = gaussian_blur(torch.randn(1, 1, *size, generator=generator), 2.0)
    scene = 0.5 + 0.04 * soft / soft.std() + 0.006 * EXTRACTOR.pattern(BITS, size, pilot_share=0.7)
    pans = torch.cat([scene[..., STEP * i : STEP * i + SIDE] for i in range(COUNT)])
    return (pans + 0.04 * torch.randn(pans.shape, generator=generator)).clamp(0, 1).expand(-1, 3, -1, -1)


def test_frames_are_read_together_that_are_not_read_alone(frames):
    alone = [EXTRACTOR.read(frame, search=False).log10_p for frame in frames]
    together = EXTRACTOR.read(frames, search=False)
    assert together.detected and together.log10_p < min(alone) - 2
    assert float((together.bits == BITS).float().mean()) > 0.9


def test_another_key_finds_nothing_in_them(frames):
    assert not KeyedExtractor(Key(bytes(32)), 48).read(frames, search=False).detected


def test_the_pattern_goes_on_at_any_pixel():
    window = EXTRACTOR.for_window(13, -27)
    assert window.frame is not None and window.frame.apply(torch.zeros(2)).tolist() == [-27, 13]
    whole = 0.5 + 0.02 * EXTRACTOR.pattern(BITS, (SIDE + 13, SIDE), pilot_share=0.7)
    logits = EXTRACTOR.for_window(13, 27).logits(whole[13:, 27:].expand(1, 3, -1, -1))
    assert torch.equal(logits[0] > 0, BITS.bool())
