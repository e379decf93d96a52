"""The public layer: its patterns, its label, and a p-value that needs no key."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors import LABELS
from onrw_core.extractors.keyed.alignment import ORIENTATIONS, oriented
from onrw_core.extractors.keyed.band import DIMENSIONS, FREQUENCIES
from onrw_core.extractors.keyed.public_layer import PILOT_DIMENSIONS, PILOT_FREQUENCIES, SYNC, WORDS, pilot, read_public
from onrw_core.extractors.keyed.tile_average import shifted


def noise(seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(1, DIMENSIONS, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_patterns_are_orthonormal_and_flips_and_turns_keep_their_frequencies():
    patterns = torch.cat([SYNC[None], WORDS])
    assert torch.allclose(patterns @ patterns.T, torch.eye(33, dtype=torch.float64), atol=1e-12)
    outside = torch.ones(DIMENSIONS, dtype=torch.bool)
    outside[PILOT_DIMENSIONS] = False
    assert outside.sum() == DIMENSIONS - 64 and not patterns[:, outside].any()
    whole = {tuple(k) for k in torch.cat([PILOT_FREQUENCIES, -PILOT_FREQUENCIES]).tolist()}
    for orientation in ORIENTATIONS:
        assert {tuple(k) for k in (PILOT_FREQUENCIES @ orientation).tolist()} <= whole
    assert torch.equal(FREQUENCIES[PILOT_DIMENSIONS[:32]], PILOT_FREQUENCIES)


@pytest.mark.parametrize("label", LABELS)
def test_the_label_is_read_wherever_the_tile_lies(label):
    tile = oriented(shifted(pilot(label).float()[None], 20.3, 7.9))[:, 6] + 0.7 * noise()
    found = read_public(tile)
    assert found.label == label and found.version == 2 and not found.negative
    assert found.cosine > 0.8 and found.log_p < -20
    assert torch.allclose(found.pattern.double(), pilot(label), atol=1e-6)
    assert read_public(-tile).negative and read_public(-tile).label == label


def test_spare_codes_and_weak_words_are_no_label():
    spare = ((SYNC + WORDS[9]) / 2**0.5).float()[None]
    assert read_public(spare).version == 2 and read_public(spare).label is None
    later = ((SYNC + WORDS[16]) / 2**0.5).float()[None]
    assert read_public(later).version == 3 and read_public(later).label is None
    assert read_public(SYNC.float()[None] + 0.1 * noise()).label is None


def test_noise_is_not_the_pilot():
    tiles = torch.randn(150, 1, DIMENSIONS, generator=torch.Generator().manual_seed(123))
    p = np.exp([read_public(tile).log_p for tile in tiles])
    assert (p < 0.1).mean() < 0.16 and p.min() > 1e-4


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="no public label 'ai'"):
        pilot("ai")
