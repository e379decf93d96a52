"""Validation of images and masks in memory.

Input may come from any earlier step: a bicubic enlargement overshoots [0, 1], a division by zero gives NaN, a mask has
the wrong axes. Values out of range are clamped here, and everything after it (quality, residual, report) refers to the
clamped image. Other invalid input raises an error that names the input: so does an image of 0 to 255, which would be
clamped to white.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_type

__all__ = ["MIN_SIDE", "as_mask", "as_rgb", "check_finite", "check_tensor", "opaque_area"]

MIN_SIDE = 64  # pixels: one tile of the watermark
OVERSHOOT = 2.0  # an image in [0, 1] may reach it after filters; one of high dynamic range may exceed it in places


def as_rgb(image: Tensor, name: str = "image", *, batch: bool = False, min_side: int = 1) -> Tensor:
    """A valid image: float32 RGB in [0, 1], values outside clamped.

    Args:
        image: (3, H, W) of a floating type.
        name: Name of the input in error messages.
        batch: Expect (B, 3, H, W) with at least one image.
        min_side: Least accepted side, in pixels.

    Returns:
        The image, without gradients; the same tensor where nothing had to be changed.

    Raises:
        ValueError: No tensor, another shape or type, a side that is too short, NaN or infinite values, or values that
            are not of [0, 1] but of [0, 255].
    """
    check_tensor(image, name)
    shape = "(batch, 3, height, width)" if batch else "(3, height, width)"
    if image.ndim != 3 + batch or image.shape[-3] != 3 or image.numel() == 0:
        raise ValueError(f"{name}: has shape {tuple(image.shape)}; give RGB pixels of shape {shape}")
    height, width = image.shape[-2:]
    if min(height, width) < min_side:
        raise ValueError(f"{name}: is {width}x{height} pixels; at least {min_side} on each side are needed")
    values = _as_floats(image, name)
    if values.max() > OVERSHOOT and ((values > 1).float().mean() > 0.5 or torch.equal(values, values.round())):
        raise ValueError(f"{name}: has values up to {values.max():g}; give values from 0 to 1, of 8 bits as x / 255")
    return _clamped(values)


def as_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """A valid mask: float32 in [0, 1], values outside clamped.

    Args:
        mask: (1, 1, H, W) of a floating type: where the watermark may lie.
        name: Name of the input in error messages.

    Raises:
        ValueError: No tensor, another shape or type, NaN or infinite values, or nothing but zeros.
    """
    check_tensor(mask, name)
    if mask.ndim != 4 or mask.shape[:2] != (1, 1) or mask.numel() == 0:
        raise ValueError(f"{name}: has shape {tuple(mask.shape)}; give one of shape (1, 1, height, width)")
    mask = _clamped(_as_floats(mask, name))
    if not mask.any():
        raise ValueError(f"{name}: is empty; paint the area that may carry the watermark")
    return mask


def opaque_area(mask: Tensor | None, alpha: Tensor | None) -> Tensor | None:
    """The area that may be marked: the mask times the opacity, since transparent pixels are neither shown nor read.

    Args:
        mask: (1, 1, h, w) in [0, 1]; None for everywhere.
        alpha: (H, W) or (1, H, W) in [0, 1]; None for an opaque image.

    Returns:
        (1, 1, H, W); None for everywhere.

    Raises:
        ValueError: The image is transparent everywhere, or what `as_mask` refuses.
    """
    if mask is not None:
        mask = as_mask(mask)
    if alpha is None or alpha.min() == 1:
        return mask
    if not alpha.max() > 0:
        raise ValueError("image: is transparent everywhere, so there is nothing to mark; give it an opaque part")
    alpha = alpha.reshape(1, 1, *alpha.shape[-2:])
    if mask is None:
        return alpha
    return alpha * F.interpolate(mask, size=alpha.shape[-2:], mode="bilinear", antialias=True, align_corners=False)


def check_tensor(values: object, name: str) -> None:
    """Raise an error unless there is a dense tensor.

    Raises:
        ValueError: Another object; a sparse, nested or quantized tensor; or one of the device "meta".
    """
    check_type(name, values, Tensor)
    assert isinstance(values, Tensor)
    if values.layout is not torch.strided or values.is_nested or values.is_quantized:
        raise ValueError(f"{name}: is a sparse, nested or quantized tensor; give a dense one, e.g. by to_dense()")
    if values.is_meta:
        raise ValueError(f'{name}: is on the device "meta", so it has no values; give a tensor on the CPU or a GPU')


def check_finite(values: Tensor, name: str) -> None:
    """Raise an error if there are NaN or infinite values.

    Raises:
        ValueError: `values` are not all finite.
    """
    if not all(torch.isfinite(extreme) for extreme in values.aminmax()):
        raise ValueError(f"{name}: has NaN or infinite values; check the step that produced it")


def _as_floats(values: Tensor, name: str) -> Tensor:
    if not values.is_floating_point():
        raise ValueError(f"{name}: has values of type {values.dtype}; give floating point from 0 to 1")
    # Some operations refuse views that are negated, and others tensors that were made under `inference_mode`.
    values = values.float().resolve_neg()
    values = values.detach() if values.requires_grad else values
    values = values.clone() if values.is_inference() else values
    check_finite(values, name)
    return values


def _clamped(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    return values if low >= 0 and high <= 1 else values.clamp(0, 1)
