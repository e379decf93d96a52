"""What a presence p-value says of the bits: the thresholds at which a reading goes on or stops."""

import math

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.band import DIMENSIONS
from onrw_core.extractors.keyed.reader import CLEAR, SURE
from onrw_core.extractors.keyed.secret_layer import BIT_COUNTS, SecretLayer
from onrw_core.payload.keys import Key

LAYER = SecretLayer.from_key(Key(bytes(range(32))))
NUM_BITS = 48
FPR = 1e-6


def tiles(strength: float, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Average tiles of marks in white noise of norm 1, (count, 364), and their bits."""
    bits = torch.randint(0, 2, (count, NUM_BITS), generator=generator)
    payload = F.normalize((2.0 * bits - 1) @ LAYER.payload[:NUM_BITS].float(), dim=1)
    noise = torch.randn(count, DIMENSIONS, generator=generator) / math.sqrt(DIMENSIONS)
    return strength * (payload + LAYER.sync_for(NUM_BITS).float()) + noise, bits


@pytest.fixture(scope="module")
def read() -> tuple[torch.Tensor, torch.Tensor]:
    """log10 p and share of wrong bits of marks of many strengths."""
    generator = torch.Generator().manual_seed(0)
    log10_p, wrong = [], []
    for strength in torch.linspace(0.5, 2.5, 11):
        received, bits = tiles(float(strength), 25, generator)
        for tile, message in zip(received, bits, strict=True):
            found = LAYER.find(LAYER.with_phases(tile, 1, 1))
            if found.length == BIT_COUNTS.index(NUM_BITS) and not found.negative:
                read = (LAYER.payload[:NUM_BITS].float() @ found.tile > 0).long()
                log10_p.append(LAYER.log10_presence(found.tile, found.log_sync, found.length))
                wrong.append(float((read != message).double().mean()))
    return torch.tensor(log10_p), torch.tensor(wrong)


def share_wrong(read: tuple[torch.Tensor, torch.Tensor], log10_p: float) -> float:
    """Mean share of wrong bits of readings within a factor 1000 of that p-value."""
    near = (read[0] - log10_p).abs() < 3
    assert near.sum() >= 10
    return float(read[1][near].mean())


def test_below_clear_a_better_geometry_is_worth_looking_for(read):
    assert 0.06 < share_wrong(read, CLEAR * math.log10(FPR)) < 0.12


def test_at_sure_hardly_a_bit_is_wrong(read):
    assert share_wrong(read, SURE * math.log10(FPR)) < 0.015
