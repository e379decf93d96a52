"""p-values: exact tails, and presence calibrated under wrong keys on any tile."""

import numpy as np
import pytest
import torch
from scipy import stats

from onrw_core.extractors.keyed import statistics
from onrw_core.extractors.keyed.alignment import align, oriented, refine, roughness
from onrw_core.extractors.keyed.band import DIMENSIONS, TILE


@pytest.mark.parametrize(("a", "b"), [(0.5, 181.5), (16, 163.5), (24, 155.5), (64, 115.5)])
def test_log_beta_tail_equals_scipy(a, b):
    x = np.array([0.0, 1e-4, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    assert np.allclose(statistics.log_beta_tail(x, a, b), stats.beta(a, b).logsf(x), atol=1e-9)


def test_fisher_product_is_uniform():
    p = np.random.default_rng(0).uniform(size=(2, 20000))
    combined = np.exp(statistics.product_log_p(np.log(p[0]), np.log(p[1])))
    assert stats.kstest(combined, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("slope", [0.0, -1.5])
def test_sync_p_value_is_calibrated_on_white_and_coloured_tiles(slope):
    """The largest correlation over all shifts and orientations, under random patterns."""
    from onrw_core.extractors.keyed.band import FREQUENCIES

    generator = torch.Generator().manual_seed(1)
    gain = FREQUENCIES.float().norm(dim=1).pow(slope)
    tiles = torch.randn(4, DIMENSIONS, generator=generator) * torch.cat([gain, gain])
    sync = torch.nn.functional.normalize(torch.randn(150, DIMENSIONS, generator=generator), dim=1)
    found = align(tiles, sync)
    turned = oriented(tiles)[torch.arange(4)[:, None], found.orientation]
    _, _, cosine = refine(turned, sync[None].expand(4, -1, -1), found.x, found.y)
    rough = roughness(tiles).numpy()[:, None]
    p = np.exp(statistics.sync_log_p(cosine.numpy(), rough, DIMENSIONS, TILE * TILE, 8))
    for level in (0.5, 0.1, 0.02):
        assert level / 2.2 < (p < level).mean() < level * 2.2, level


def test_energy_p_value_is_uniform():
    generator = torch.Generator().manual_seed(2)
    tile = torch.randn(1, 359, generator=generator, dtype=torch.float64) ** 3
    fractions = []
    for _ in range(120):
        q, _ = torch.linalg.qr(torch.randn(359, 48, generator=generator, dtype=torch.float64))
        fractions.append(float((tile @ q).square().sum() / tile.square().sum()))
    p = np.exp(statistics.energy_log_p(np.array(fractions), 48, 359))
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_tile_that_is_the_pattern_has_a_finite_p_value():
    p = statistics.sync_log_p(np.array([1.0, 0.0]), np.array([[0.5, 0.06]] * 2), DIMENSIONS, TILE * TILE, 8)
    assert np.isfinite(p).all() and p[0] < -1000 and p[1] == pytest.approx(0, abs=1e-6)
