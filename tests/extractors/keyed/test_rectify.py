"""Rectification: a function of the marked frame, received under a geometry, comes back at its own place."""

import math

import pytest
import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.rectify import rectify
from onrw_core.imaging.geometry import Geometry

from .synthetic import SIZE, luma, marked, resized


def frame(points: torch.Tensor) -> torch.Tensor:
    """A smooth function of marked coordinates (..., 2), with no symmetry."""
    x, y = points.unbind(-1)
    return torch.sin(x / 17) + torch.cos(y / 23 + 1) + torch.sin((x + 2 * y) / 41)


def positions(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


def received(geometry: Geometry, height: int, width: int) -> torch.Tensor:
    return frame(geometry.apply(positions(height, width))).float()[None, None]


def turn(turns: int, size: float) -> Geometry:
    return Geometry(
        torch.linalg.matrix_power(torch.tensor([[0, -1, size], [1, 0, 0], [0, 0, 1]], dtype=torch.float64), turns)
    )


FLIP = Geometry(torch.tensor([[-1, 0, 90], [0, 1, 0], [0, 0, 1]], dtype=torch.float64))
PERSPECTIVE = Geometry(torch.tensor([[1, 0.1, 3], [0.05, 0.95, 2], [4e-4, -3e-4, 1]], dtype=torch.float64))
EXACT = {
    "shift": Geometry.shift(20, 7),
    "half a pixel": Geometry.shift(-3.5, 0.25),
    "flip": FLIP,
    "turned 90": turn(1, 80),
    "turned 180": turn(2, 80),
    "turned 270": turn(3, 80),
    "turned and flipped": turn(1, 80) @ FLIP,
    "a scaled matrix": Geometry(Geometry.shift(20, 7).matrix * 3),
}
RESAMPLED = {
    "rotation": Geometry.rotation(17, (80, 90)),
    "enlarged": Geometry.scale(0.6),
    "shrunk": Geometry.scale(1.7, 1.4) @ Geometry.shift(5, 5),
    "shrunk much": Geometry.scale(3),
    "perspective": PERSPECTIVE,
}


@pytest.mark.parametrize("name", [*EXACT, *RESAMPLED])
def test_the_frame_comes_back_at_its_place(name):
    geometry = (EXACT | RESAMPLED)[name]
    result = rectify(received(geometry, 80, 90), geometry)
    height, width = result.y.shape[-2:]
    expected = frame(positions(height, width) + torch.tensor([result.x0, result.y0])).float()
    # Bicubic interpolation reads two pixels around: what lies further inside of the image is compared.
    source = geometry.inverse().apply(positions(height, width) + torch.tensor([result.x0, result.y0]))
    margin = 0 if name in EXACT else 4
    inside = ((source > margin) & (source < torch.tensor([90, 80]) - margin)).all(-1)
    assert (result.y[0, 0] - expected)[inside].abs().max() < (1e-4 if name in EXACT else 0.03)
    if result.weight is not None:
        assert result.weight[0, 0][inside].all()
    area = abs(torch.linalg.det(geometry.matrix)) / abs(geometry.matrix[2, 2]) ** 3 * 80 * 90
    assert inside.sum() > 0.6 * area
    assert (result.weight is None) == (name in EXACT)


def test_without_a_geometry_the_image_is_returned_itself():
    y = torch.rand(1, 1, 30, 40)
    result = rectify(y, None)
    assert result.y is y and result.weight is None and (result.x0, result.y0) == (0, 0)


def test_outside_of_the_image_the_weight_is_zero():
    geometry = Geometry.rotation(30, (80, 80))
    result = rectify(torch.ones(1, 1, 80, 80), geometry)
    marked = positions(*result.y.shape[-2:]) + torch.tensor([result.x0, result.y0])
    inside = geometry.inverse().apply(marked)
    covered = ((inside > 2) & (inside < 78)).all(-1)
    outside = ((inside < 0) | (inside > 80)).any(-1)
    weight = result.weight[0, 0].bool()
    assert covered.any() and outside.any()
    assert weight[covered].all() and not weight[outside].any()
    assert torch.allclose(result.y[0, 0][covered], torch.tensor(1.0), atol=1e-4)


@pytest.mark.parametrize("geometry", [Geometry.identity(), Geometry.scale(2), Geometry.rotation(10, (300, 300))])
def test_the_limit_keeps_the_centre(geometry):
    whole = rectify(received(geometry, 300, 300), geometry)
    part = rectify(received(geometry, 300, 300), geometry, limit=100)
    assert max(part.y.shape[-2:]) <= 100
    centres = [(result.x0 + result.y.shape[-1] / 2, result.y0 + result.y.shape[-2] / 2) for result in (whole, part)]
    assert math.dist(*centres) <= 2
    expected = frame(positions(*part.y.shape[-2:]) + torch.tensor([part.x0, part.y0])).float()
    assert (part.y[0, 0] - expected).abs().max() < 0.02


def test_the_gradient_reaches_the_image():
    y = torch.rand(1, 1, 80, 90, requires_grad=True)
    rectify(y, RESAMPLED["rotation"]).y.sum().backward()
    assert (y.grad != 0).float().mean() > 0.6


def test_large_pictures_are_averaged_before_they_are_resampled():
    picture = marked()
    large = resized(picture, 8 * SIZE, 8 * SIZE)
    rectified = rectify(luma(large), Geometry.scale(1 / 8))
    assert rectified.y.shape[-2:] == (SIZE, SIZE)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (rectified.y[inner] - luma(picture)[inner]).abs().mean() < 0.01


def test_quarter_turns_of_large_pictures_are_drawn_in_the_middle():
    y = torch.rand(1, 1, 90, 130, generator=torch.Generator().manual_seed(0))
    turn = Geometry(torch.tensor([[0.0, -1, 90], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))
    whole, middle = rectify(y, turn), rectify(y, turn, limit=40)
    x0, y0 = int(middle.x0 - whole.x0), int(middle.y0 - whole.y0)
    assert middle.y.shape[-2:] == (40, 40) and (x0, y0) == (25, 45)
    assert torch.equal(middle.y, whole.y[..., y0 : y0 + 40, x0 : x0 + 40])


def test_shrinking_averages_noise():
    """Of white noise at half its size, less than half of the deviation is left; interpolation alone leaves .64."""
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    assert 0.3 < float(rectify(noise, Geometry.scale(0.5)).y.std()) < 0.5


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7])
def test_the_centre_of_a_large_image_is_read_as_if_all_of_it_were_resized(monkeypatch, scale):
    geometry = Geometry.shift(40, 40) @ Geometry.scale(scale) @ Geometry.rotation(20, (700, 900))
    image = received(geometry, 700, 900)
    shapes, pool, interpolate = [], F.avg_pool2d, F.interpolate
    monkeypatch.setattr(F, "avg_pool2d", lambda y, factor: shapes.append(y.shape) or pool(y, factor))
    monkeypatch.setattr(F, "interpolate", lambda y, **options: shapes.append(y.shape) or interpolate(y, **options))
    found = rectify(image, geometry, 60)
    assert max(shapes[0][-2:]) < (700 if scale > 0.1 else 901)
    monkeypatch.setattr("onrw_core.extractors.keyed.rectify._around", lambda y, geometry, *_: (y, geometry))
    whole = rectify(image, geometry, 60)
    assert (found.x0, found.y0) == (whole.x0, whole.y0) and found.y.shape == whole.y.shape
    assert torch.equal(found.weight, whole.weight) and whole.weight.mean() > 0.5
    assert ((found.y - whole.y) * whole.weight).abs().max() < 0.02  # of -3 to 3
