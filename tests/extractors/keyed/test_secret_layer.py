"""The secret layer: patterns and phases of a key, the place in the pattern, and p-values that count what was tried."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.band import DIMENSIONS
from onrw_core.extractors.keyed.secret_layer import BIT_COUNTS, PERIOD, SecretLayer
from onrw_core.extractors.keyed.statistics import energy_log_p, product_log_p
from onrw_core.extractors.keyed.tile_average import shifted
from onrw_core.payload.keys import Key

KEY = Key(bytes(range(32)))
LAYER = SecretLayer.from_key(KEY)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, DIMENSIONS, generator=torch.Generator().manual_seed(seed)), dim=-1)


def pattern(num_bits: int, seed: int = 1) -> torch.Tensor:
    signs = torch.randint(0, 2, (num_bits,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    return (LAYER.sync_for(num_bits) + F.normalize(signs @ LAYER.payload[:num_bits], dim=0)).float()


def test_patterns_are_orthonormal_and_one_sync_pattern_belongs_to_each_number_of_bits():
    patterns = torch.cat([LAYER.sync, LAYER.payload])
    assert patterns.shape == (5 + 128, DIMENSIONS)
    assert torch.allclose(patterns @ patterns.T, torch.eye(133, dtype=torch.float64), atol=1e-12)
    for index, num_bits in enumerate(BIT_COUNTS):
        assert torch.equal(LAYER.sync_for(num_bits), LAYER.sync[index])


def test_phases_are_quarter_turns_that_no_two_places_share():
    assert LAYER.phases.shape == (PERIOD, PERIOD, DIMENSIONS // 2) and PERIOD >= 32
    assert torch.equal(LAYER.phases.unique(), torch.arange(4, dtype=torch.uint8))
    angle = LAYER.phases.flatten(0, 1).float() * (math.pi / 2)
    wave = torch.complex(angle.cos(), angle.sin())
    alike = (wave @ wave.conj().T).abs() / wave.shape[1]
    assert float(alike.fill_diagonal_(0).max()) < 0.4  # 5 deviations of 1 / sqrt 182


def test_phases_are_removed_as_they_were_added():
    tiles = LAYER.with_phases(pattern(48), 3, 4, (30, 31))[None]
    assert float((tiles[0] - pattern(48)).norm(dim=-1).min()) > 0.5
    assert torch.allclose(LAYER.without_phases(tiles, 30, 31)[0], pattern(48).expand(3, 4, -1), atol=1e-6)
    places = torch.tensor([[30, 31], [32, 34]])
    ends = LAYER.each_without_phases(tiles[0, [0, 2], [0, 3]], places)
    assert torch.allclose(ends, pattern(48).expand(2, -1), atol=1e-6)
    halves = tiles.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, 1:, :-1]
    plain = LAYER.without_phases(halves, 61, 62, per_tile=2)
    assert torch.allclose(plain[0], pattern(48).expand(5, 7, -1), atol=1e-6)


@pytest.mark.parametrize("num_bits", BIT_COUNTS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_place_the_number_of_bits_and_the_sign_are_found(num_bits, sign):
    tiles = sign * LAYER.with_phases(pattern(num_bits), 4, 5, (29, 7)) + 0.3 * noise(4, 5)
    found = LAYER.find(tiles)
    assert (found.row, found.column, BIT_COUNTS[found.length], found.negative) == (29, 7, num_bits, sign < 0)
    assert float(F.cosine_similarity(sign * found.tile, pattern(num_bits), dim=0)) > 0.95
    assert (found.x, found.y) == (0, 0)
    assert found.log_sync < -20
    moved = LAYER.find(shifted(tiles, 1.2, -0.7), area=100)
    assert (moved.x, moved.y) == (pytest.approx(-1.2, abs=0.4), pytest.approx(0.7, abs=0.4))  # the payload interferes


def test_more_tiles_than_the_period_are_folded():
    tiles = LAYER.with_phases(pattern(48), PERIOD + 3, 2, (5, 9)) + noise(PERIOD + 3, 2)
    found = LAYER.find(tiles)
    assert (found.row, found.column) == (5, 9)
    every = LAYER.at_every_place(tiles)[:, 5 * PERIOD + 9]
    assert torch.allclose(
        torch.cat([every.real, every.imag]), LAYER.without_phases(tiles[None], 5, 9).sum((0, 1, 2)), atol=1e-4
    )


def test_presence_is_as_likely_as_it_says_and_counts_more_tries():
    layers = [SecretLayer.from_key(Key(bytes([i]) * 32)) for i in range(20)]
    p = []
    for seed in range(15):
        tiles = noise(4, 6, seed=seed)
        for layer in layers:
            found = layer.find(tiles)
            p.append(10 ** layer.log10_presence(found.tile, found.log_sync, found.length))
    assert 0.02 < np.mean(np.array(p) < 0.1) < 0.16 and min(p) > 1e-5
    tiles = tiles + LAYER.with_phases(pattern(48), 4, 6)
    once, often = LAYER.find(tiles), LAYER.find(tiles, tries=100)
    assert often.log_sync == pytest.approx(once.log_sync + math.log(100))


def test_presence_combines_sync_and_energy_outside_of_the_sync_patterns():
    tile = pattern(64) + 2 * noise()
    unit = F.normalize(tile.double(), dim=0)
    free = unit - LAYER.sync.T @ (LAYER.sync @ unit)
    fraction = float((LAYER.payload[:64] @ unit).square().sum() / free.square().sum())
    expected = product_log_p(np.array([-5.0]), energy_log_p(np.array([fraction]), 64, DIMENSIONS - 5)) / math.log(10)
    assert LAYER.log10_presence(tile, -5.0, BIT_COUNTS.index(64)) == pytest.approx(float(expected[0]))


def test_each_picture_has_its_place():
    places = {SecretLayer.place(KEY, bytes([i])) for i in range(200)}
    assert len(places) > 150 and all(0 <= row < PERIOD and 0 <= column < PERIOD for row, column in places)
    assert SecretLayer.place(KEY, b"a") == SecretLayer.place(KEY, b"a") != SecretLayer.place(Key(bytes(32)), b"a")
