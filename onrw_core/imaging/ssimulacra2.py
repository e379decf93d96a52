"""SSIMULACRA2 (Sneyers, Cloudinary 2022, version 2.1), the judge of image codecs, differentiable.

100 means the same image, 90 visually lossless at 1:1, 70 high quality, 50 medium, 30 low. Of both images it takes

- linear light, halved five times by averaging 2 x 2 pixels, each scale in the opponent colours XYB of JPEG XL;
- for every scale and colour three maps: dissimilarity of structure, artefacts (edges where the original is smooth) and
  lost detail (smoothness where the original has edges), within a Gaussian neighbourhood of sigma 1.5 pixels;
- of every map the mean and the 4-norm, a sum of these 108 numbers by the published weights, and a curve on the sum.

Written with the difference delta = marked - original, which changes no value, but keeps float32 exact where images
are nearly equal: with p the original, m = blur(delta), v = blur(delta^2) - m^2 and c = blur(p delta) - blur(p) m,

    structure:  m^2 + (1 - m^2) v / (2 var(p) + 2 c + v + C2)
    edges:      (|h + delta - m| - |h|) / (1 + |h|),   h = p - blur(p);  artefact where positive, lost detail where not

The definition blurs by a recursive approximation of the Gaussian, with zeros around the image. The reference here is
the package `ssimulacra2`, which cuts the Gaussian at 5 pixels and mirrors the rows above and below: zeros there hide
errors along the edges, and score up to a point higher between 60 and 90.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve import gaussian_kernel, valid
from .strips import strips

__all__ = ["Ssimulacra2", "linear_light", "opponent", "ssimulacra2"]

SCALES = 6
LEAST_SIDE = 8  # pixels; scales with a side below that are left out
SIGMA = 1.5  # pixels
RADIUS = 5  # pixels
KERNEL = gaussian_kernel(SIGMA, RADIUS)
C2 = 0.0009

# From linear RGB to responses of the long, medium and short cones.
CONES = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
BIAS = 0.0037930732552754493
# X, Y, B - Y from the cube roots of the responses: differences, scaled and shifted to be positive.
OPPONENT = ((7.0, -7.0, 0.0), (0.5, 0.5, 0.0), (-0.5, -0.5, 1.0))
OFFSET = (0.42, 0.01, 0.55)

# The published weights by colour (X, Y, B - Y), scale (full size first) and norm (mean, 4-norm), each of structure,
# artefact, lost detail.
# fmt: off
WEIGHTS = (
    0.0, 0.0007376606707406586, 0.0,  0.0, 0.0007793481682867309, 0.0,
    0.0, 0.0004371155730107379, 0.0,  1.1041726426657346, 0.00066284834129271, 0.00015231632783718752,
    0.0, 0.0016406437456599754, 0.0,  1.8422455520539298, 11.441172603757666, 0.0,
    0.0007989109436015163, 0.000176816438078653, 0.0,  1.8787594979546387, 10.94906990605142, 0.0,
    0.0007289346991508072, 0.9677937080626833, 0.0,  0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053,
    0.0004550992113792063, 0.0, 0.0,  0.0013648766163243398, 0.0, 0.0,

    0.0, 0.0, 0.0,  7.466890328078848, 0.0, 17.445833984131262,
    0.0006235601634041466, 0.0, 0.0,  6.683678146179332, 0.00037724407979611296, 1.027889937768264,
    225.20515300849274, 0.0, 0.0,  19.213238186143016, 0.0011401524586618361, 0.001237755635509985,
    176.39317598450694, 0.0, 0.0,  24.43300999870476, 0.28520802612117757, 0.0004485436923833408,
    0.0, 0.0, 0.0,  34.77906344483772, 44.835625328877896, 0.0,
    0.0, 0.0, 0.0,  0.0, 0.0, 0.0,

    0.0, 0.0, 0.0008680556573291698,  0.0, 0.0, 0.0,
    0.0, 0.0, 0.0005313191874358747,  0.0, 0.00016533814161379112, 0.0,
    0.0, 0.0, 0.0,  0.0004179171803251336, 0.0017290828234722833, 0.0,
    0.0020827005846636437, 0.0, 0.0,  8.826982764996862, 23.19243343998926, 0.0,
    95.1080498811086, 0.9863978034400682, 0.9834382792465353,  0.0012286405048278493, 171.2667255897307,
    0.9807858872435379,
    0.0, 0.0, 0.0,  0.0005130064588990679, 0.0, 0.00010854057858411537,
)
# fmt: on
# Planes whose weights are all below that are left out: full size is judged in Y alone, half size in X and Y, 1/32 not
# at all. That takes a third of the time and changes scores by less than 0.005.
NEGLIGIBLE = 0.01

FACTOR = 0.9562382616834844
POLYNOMIAL = (2.326765642916932, -0.020884521182843837, 6.248496625763138e-05)  # of the sum, its square and cube
EXPONENT = 0.6276336467831387
TINY = 1e-12  # keeps the derivatives of the roots finite where nothing differs


def ssimulacra2(images: Tensor, originals: Tensor) -> Tensor:
    """SSIMULACRA2 of each image, (B, 3, H, W) in [0, 1] both; returns (B,). See `Ssimulacra2`."""
    return torch.cat([Ssimulacra2(o[None])(i[None]) for i, o in zip(images, originals, strict=True)])


Planes = Callable[[slice], list[Tensor]]  # rows -> the opponent colours of a scale in these rows, (B, 1, h, W) each


class Ssimulacra2:
    """SSIMULACRA2 against one original, whose side is computed once."""

    def __init__(self, original: Tensor, weight: Tensor | None = None) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], sRGB; each side at least 8 pixels.
            weight: (1, 1, H, W), not negative: the share of each pixel in the norms, as of an opacity; None for all
                alike, which is the published metric.

        Raises:
            ValueError: Another shape, an image that is too small, or no weight anywhere.
        """
        if original.dim() != 4 or original.shape[:2] != (1, 3):
            raise ValueError(f"the original must be one RGB image (1, 3, H, W), got {tuple(original.shape)}")
        if min(original.shape[-2:]) < LEAST_SIDE:
            raise ValueError(
                f"SSIMULACRA2 needs images of at least {LEAST_SIDE} x {LEAST_SIDE} pixels, got "
                f"{original.shape[-1]}x{original.shape[-2]}"
            )
        if weight is not None and not weight.max() > 0:
            raise ValueError("no pixel has weight: there is nothing to judge")
        self.size = original.shape[-2:]
        self._scales: list[list[_Plane]] = []
        with torch.no_grad():
            count = _scale_count(*self.size)
            # Smaller images have fewer scales, and the published weights then close up.
            table = torch.tensor(WEIGHTS[: 18 * count], dtype=torch.float64).view(3, count, 2, 3)
            self._colours = [[c for c in range(3) if table[c, scale].max() > NEGLIGIBLE] for scale in range(count)]
            share = None if weight is None else weight.to(original)
            size = self.size
            for scale, planes in enumerate(_pyramid(original, self._colours)):
                parts = zip(*(planes(rows) for rows in strips(*size)), strict=True)
                named = zip(self._colours[scale], parts, strict=True)
                self._scales.append([_Plane.of(torch.cat(part, dim=-2), share, table[c, scale]) for c, part in named])
                share = None if share is None else _halved(share)
                size = torch.Size(-(-side // 2) for side in size)

    def __call__(self, images: Tensor) -> Tensor:
        """Scores of images (B, 3, H, W) of the original's size in [0, 1]: (B,), float64, 100 at most."""
        if images.shape[1:] != (3, *self.size):
            raise ValueError(
                f"the images must have the original's shape (B, 3, {self.size[0]}, {self.size[1]}), got "
                f"{tuple(images.shape)}"
            )
        total = images.new_zeros(len(images), dtype=torch.float64)
        for originals, planes in zip(self._scales, _pyramid(images, self._colours), strict=True):
            if originals:
                total = total + _error(originals, planes)
        return _score(total)


class _Statistics(NamedTuple):
    """Of a plane, pixel by pixel: the mean, the doubled variance + C2, the height over the mean."""

    mean: Tensor
    variance: Tensor
    height: Tensor


@dataclass(frozen=True)
class _Plane:
    """One colour of one scale of the original, (1, 1, H, W), with the share of each pixel and the norms' weights.

    Its statistics are kept where it is one strip; those of larger planes, which would take four times their memory, are
    computed anew with each image.
    """

    pixels: Tensor
    share: Tensor | None
    weights: Tensor
    statistics: _Statistics | None

    @classmethod
    def of(cls, pixels: Tensor, share: Tensor | None, weights: Tensor) -> _Plane:
        if share is not None:
            share = share / share.mean()
        small = len(list(strips(*pixels.shape[-2:]))) == 1
        return cls(pixels, share, weights.to(pixels), _statistics(pixels) if small else None)

    def sums(self, marked: Tensor, rows: slice) -> Tensor:
        """Sums over rows of the maps and of their fourth powers, (B, 2, 3).

        Args:
            marked: (B, 1, h, W), these rows with the rows around them, see `_with_margin`.
            rows: Of the plane.
        """
        wide, inner = _with_margin(rows, self.pixels.shape[-2])
        pixels = self.pixels[..., wide, :]
        original = self.statistics or _Statistics(*(values[..., inner, :] for values in _statistics(pixels)))
        delta = marked - pixels
        blurred = _blurred(torch.cat([delta, delta.square(), pixels * delta], dim=1))[..., inner, :]
        mean, square, product = blurred.split(1, dim=1)
        mean_square = mean.square()
        variance = square - mean_square
        whole = original.variance + 2 * (product - original.mean * mean) + variance
        structure = (mean_square + (1 - mean_square) * (variance / whole)).clamp_min(0)
        height = original.height
        plain = height.abs()
        edges = ((height + delta[..., inner, :] - mean).abs() - plain) / (1 + plain)
        maps = torch.cat([structure, edges.clamp_min(0), (-edges).clamp_min(0)], dim=1)
        fourth = maps.square().square()
        if self.share is not None:
            share = self.share[..., rows, :]
            maps, fourth = share * maps, share * fourth
        return torch.stack([maps.sum((2, 3)), fourth.sum((2, 3))], dim=1).double()


def _error(originals: list[_Plane], planes: Planes) -> Tensor:
    """The weighted norms of the three maps of all colours of a scale, (B,)."""
    height, width = originals[0].pixels.shape[-2:]
    sums = [torch.zeros(())] * len(originals)
    for rows in strips(height, width):
        marked = planes(_with_margin(rows, height)[0])
        sums = [total + each.sums(plane, rows) for total, each, plane in zip(sums, originals, marked, strict=True)]
    error = torch.zeros(())
    for total, each in zip(sums, originals, strict=True):
        means = total / (height * width)
        norms = torch.stack([means[:, 0], means[:, 1].clamp_min(TINY**4) ** 0.25], dim=1)
        error = error + (each.weights.double() * norms).sum((1, 2))
    return error


def _statistics(pixels: Tensor) -> _Statistics:
    with torch.no_grad():
        mean, square = _blurred(pixels), _blurred(pixels.square())
        return _Statistics(mean, 2 * (square - mean.square()) + C2, pixels - mean)


def _with_margin(rows: slice, height: int) -> tuple[slice, slice]:
    """Rows with the rows around them that the Gaussian mean takes in, and the rows' place among those."""
    first, last = max(0, rows.start - RADIUS), min(height, rows.stop + RADIUS)
    return slice(first, last), slice(rows.start - first, rows.stop - first)


def linear_light(images: Tensor) -> Tensor:
    """From sRGB to linear light (IEC 61966-2-1), any shape, [0, 1]; the derivative is finite everywhere."""
    curve = ((images.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(images <= 0.04045, images / 12.92, curve)


def _scale_count(height: int, width: int) -> int:
    """Number of scales: at most `SCALES`, with sides of at least `LEAST_SIDE`."""
    count, side = 1, min(height, width)
    while count < SCALES and (side := -(-side // 2)) >= LEAST_SIDE:
        count += 1
    return count


def _pyramid(images: Tensor, colours: list[list[int]]) -> Iterator[Planes]:
    """The scales of images (B, 3, H, W); a large image is in linear light, or in opponent colours, in strips only."""
    parts = list(strips(*images.shape[-2:]))
    if len(parts) == 1:
        light = linear_light(images)
        yield _planes(light, colours[0])
        light = _halved(light)
    else:
        yield lambda rows: opponent(linear_light(images[..., rows, :]), colours[0])
        light = torch.cat([_halved(linear_light(images[..., rows, :])) for rows in parts], dim=-2)
    for scale in colours[1:]:
        yield _planes(light, scale)
        light = _halved(light)


def _planes(light: Tensor, colours: list[int]) -> Planes:
    return lambda rows: opponent(light[..., rows, :], colours)


def _halved(light: Tensor) -> Tensor:
    """Means over 2 x 2 pixels; an odd last row or column counts twice."""
    return F.avg_pool2d(light, 2, ceil_mode=True)


def opponent(light: Tensor, colours: list[int]) -> list[Tensor]:
    """The named colours (0: X, 1: Y, 2: B - Y), (B, 1, H, W) each, of linear light (B, 3, H, W)."""
    needed = sorted({j for c in colours for j in range(3) if OPPONENT[c][j]})
    roots = {}
    for j in needed:
        response = sum(w * plane for w, plane in zip(CONES[j], light.split(1, dim=1), strict=True))
        roots[j] = (response + BIAS).clamp_min(TINY) ** (1 / 3) - BIAS ** (1 / 3)
    return [sum(OPPONENT[c][j] * roots[j] for j in needed if OPPONENT[c][j]) + OFFSET[c] for c in colours]


class _Blurred(torch.autograd.Function):
    """The Gaussian mean, with zeros on the left and the right, and rows mirrored above and below: its own transpose."""

    @staticmethod
    def forward(ctx, planes: Tensor) -> Tensor:
        above, below = planes[..., :RADIUS, :].flip(-2), planes[..., -RADIUS:, :].flip(-2)
        return valid(F.pad(torch.cat([above, planes, below], dim=-2), (RADIUS, RADIUS)), KERNEL)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Blurred.forward(ctx, gradient)


_blurred = _Blurred.apply


def _score(total: Tensor) -> Tensor:
    scaled = FACTOR * total
    first, second, third = POLYNOMIAL
    raised = first * scaled + second * scaled**2 + third * scaled**3
    return 100 - 10 * raised.clamp_min(TINY) ** EXPONENT
