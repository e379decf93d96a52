"""Limits on what a mark may show: the table, the load, and the scale with its derivative."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onrw_core.imaging.convolve import gaussian_blur
from onrw_core.imaging.ssimulacra2 import ssimulacra2
from onrw_core.stages.composition import Composer, CompositionOptions
from onrw_core.stages.limits import ScaleToLimits, VisualLoad, limits


@pytest.fixture
def original():
    generator = torch.Generator().manual_seed(3)
    return (0.5 + gaussian_blur(torch.randn(1, 3, 96, 112, generator=generator), 2.0)).clamp(0.1, 0.9)


@pytest.fixture
def residual():
    return gaussian_blur(torch.randn(1, 3, 96, 112, generator=torch.Generator().manual_seed(5)), 1.5)


def test_limits_tighten_with_quality_and_are_interpolated():
    rows = [limits(q) for q in (60, 70, 75, 80, 87, 90, 93, 95, 98)]
    for name in ("norm", "worst", "peak"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values, reverse=True) and values[-1] > 0
    assert limits(75).norm == pytest.approx((limits(70).norm + limits(80).norm) / 2)
    assert limits(90).peak == pytest.approx(16 / 255)
    assert limits(98).norm == limits(95).norm > 0.5 * limits(90).norm


def test_the_limits_are_those_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    table = page[page.index("| SSIMULACRA2 | norm of the visible error |") :]
    rows = [[float(cell) for cell in line.split("|")[1:-1]] for line in table[: table.index("\n\n")].split("\n")[2:]]
    assert [row[0] for row in rows] == [70, 80, 85, 90, 95]
    for quality, norm, worst, peak in rows:
        bounds = limits(quality)
        assert (bounds.norm, bounds.worst, bounds.peak) == pytest.approx((norm, worst, peak / 255))


@pytest.mark.parametrize("quality", [0, 100, -5, float("nan")])
def test_quality_out_of_range_is_refused(quality):
    with pytest.raises(ValueError, match="quality"):
        limits(quality)


@pytest.mark.parametrize("quality", [80, 90])
def test_scale_reaches_the_limits(original, residual, quality):
    bounds = limits(quality)
    scale_to_limits = ScaleToLimits(original, bounds)
    for strength in (1.0, 1.3, 0.9, 1.0, 1.1):  # as the residuals of an optimisation
        scaled = scale_to_limits(strength * residual) * strength * residual
    assert float(VisualLoad(original, bounds)(original + scaled)) == pytest.approx(1, abs=0.03)
    assert float(ssimulacra2(original + scaled, original)) > quality - 0.3


def test_weights_of_odd_sizes_cover_the_last_row(original, residual):
    odd, change = original[..., :95, :111], 0.01 * residual[..., :95, :111]
    weight = torch.ones(1, 1, 95, 111)
    weighted, plain = (float(VisualLoad(odd, limits(90), w)(odd + change)) for w in (weight, None))
    assert weighted == pytest.approx(plain, rel=1e-3)


def test_load_names_the_limit_that_binds(original, residual):
    marked = original + 0.01 * residual / residual.std()
    bounds = limits(90)
    whole = float(VisualLoad(original, bounds)(marked))
    tight = type(bounds)(bounds.quality, bounds.norm, bounds.worst / 20, bounds.peak)
    assert float(VisualLoad(original, tight)(marked)) > 3 * whole


def test_derivative_of_the_scale(original, residual):
    scale_to_limits = ScaleToLimits(original, limits(90))
    direction = torch.randn(residual.shape, generator=torch.Generator().manual_seed(8))

    def scale(x):
        for _ in range(9):  # until the Newton steps have converged
            result = scale_to_limits(x)
        return result

    (gradient,) = torch.autograd.grad(scale(residual.requires_grad_()), residual)
    with torch.no_grad():
        numeric = (scale(residual + 0.02 * direction) - scale(residual - 0.02 * direction)) / 0.04
    assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=0.05)


def test_a_load_that_falls_with_the_strength_stops_nothing(original, residual, monkeypatch):
    """As it does where the metrics are steep, near black: the scale stays finite and has no gradient there."""
    rising, load = [], VisualLoad.__call__
    monkeypatch.setattr(
        VisualLoad, "__call__", lambda self, marked: load(self, marked) if rising else 2 - load(self, marked)
    )
    scale_to_limits = ScaleToLimits(original, limits(90))
    scale = scale_to_limits(residual.requires_grad_())
    (gradient,) = torch.autograd.grad(scale, residual)
    assert torch.isfinite(scale) and scale > 0 and not gradient.any()
    rising.append(True)
    for _ in range(3):
        scale = scale_to_limits(residual)
    (gradient,) = torch.autograd.grad(scale, residual)
    assert torch.isfinite(gradient).all() and gradient.any()


def test_similar_residuals_cost_less_than_one_gradient_of_the_load_each(original, residual, monkeypatch):
    calls, load = [], VisualLoad.__call__
    monkeypatch.setattr(VisualLoad, "__call__", lambda self, marked: calls.append(1) or load(self, marked))
    scale_to_limits = ScaleToLimits(original, limits(90))
    for strength in (1.0, 1.1, 0.9):
        scale_to_limits(strength * residual)
    first = len(calls)
    for strength in (1.0, 1.1, 0.9, 1.0):
        scale_to_limits(strength * residual)
    assert len(calls) - first == 2
    scale_to_limits(residual.flip(-1))  # another one
    assert len(calls) - first > 3


def test_composer_keeps_quality_peak_and_grey(original, residual):
    composer = Composer(original, CompositionOptions(quality=90, luma_only=True))
    spike = residual.clone()
    spike[..., 40, 40] += 60 * residual.std()
    for _ in range(3):
        marked = composer(original + spike, original)
    change = marked - original
    assert change.abs().max() <= limits(90).peak + 0.5 / 255
    assert (change.amax(1) - change.amin(1)).max() <= 1.01 / 255  # of rounding
    assert float(ssimulacra2(marked, original)) > 89.5
