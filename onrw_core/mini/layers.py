"""Initialisation shared by the networks of the embedded model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["zeroed"]

Layer = TypeVar("Layer", bound=nn.Module)


def zeroed(layer: Layer) -> Layer:
    """Set all parameters of a layer to zero, so that the residual branch that it ends starts as zero; returns it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
