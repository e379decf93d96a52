"""HiDDeN's decoder (Zhu et al. 2018, arXiv 1807.09937), as Stable Signature trained it (arXiv 2303.15435).

Blocks of 3x3 convolution, batch norm and GELU at full resolution, an average over all positions, and one linear
layer; whitened decoders have a second linear layer, which is folded into the first. Because of the average it reads
images of any size. Published state dicts name their tensors ``layers.<block>.layers.<0 convolution | 1 norm>.*``
and ``linear.*``; number of blocks, channels and bits follow from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import GELU, AdaptiveAvgPool2d, Conv2d, Flatten, Linear, Module, Parameter, Sequential

from ...imaging.geometry import Geometry
from ..base import WINDOW, Extractor, ExtractorError

__all__ = ["HiddenExtractor", "hidden_state"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
EPSILON = 1e-3  # of the batch norms, in the published decoders
FIRST = "layers.0.layers.0.weight"
WRAPPERS = ("state_dict", "encoder_decoder", "model", "decoder")
NORM = ("weight", "bias", "running_mean", "running_var")


class HiddenExtractor(Extractor):
    """The decoder of HiDDeN or Stable Signature with given weights.

    Args:
        state: Tensors under the published names, see `hidden_state`.
        name: Short name.

    Raises:
        ExtractorError: If a tensor is missing or the shapes do not fit together.
    """

    window = WINDOW

    def __init__(self, state: Mapping[str, Tensor], name: str = "hidden") -> None:
        self.name = name
        self._network, self.num_bits = _network(hidden_state(state))

    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        if next(self._network.parameters()).device != images.device:
            self._network.to(images.device)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return self._network((images - mean) / std)


def hidden_state(state: Mapping) -> dict[str, Tensor]:
    """The decoder's tensors under their published names, from any of the published file formats.

    Removes wrapping dictionaries ("state_dict", "encoder_decoder", ...) and prefixes ("module.", "decoder.", the
    "0." of a whitened decoder), and folds the whitening layer into the linear one.

    Args:
        state: A state dict or a checkpoint with one in it.

    Raises:
        ExtractorError: If no HiDDeN decoder is found.
    """
    for _ in WRAPPERS:  # at most one level per name: a dictionary may contain itself
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), Mapping)), state)
    state = {name: value for name, value in state.items() if isinstance(name, str) and is_dense(value)}
    # An encoder in the same file has blocks but no linear layer.
    prefixes = [k.removesuffix(FIRST) for k in state if k.endswith(FIRST)]
    prefixes = [p for p in prefixes if f"{p}linear.weight" in state]
    if not prefixes:
        raise ExtractorError(f"no HiDDeN decoder: no tensors named {FIRST!r} and 'linear.weight'; give its state dict")
    prefix = prefixes[0]
    tensors = {k.removeprefix(prefix): v.detach().float() for k, v in state.items() if k.startswith(prefix)}
    whitening = re.sub(r"0\.$", "1.", prefix) if prefix.endswith("0.") else None
    if whitening and f"{whitening}weight" in state:
        bits = len(_tensor(tensors, "linear.weight", (None, None)))
        _tensor(tensors, "linear.bias", (bits,))
        weight = _tensor(state, f"{whitening}weight", (None, bits)).detach().float()
        bias = state.get(f"{whitening}bias", weight.new_zeros(len(weight)))
        bias = _tensor({"bias of the whitening": bias}, "bias of the whitening", (len(weight),)).detach().float()
        tensors["linear.bias"] = weight @ tensors["linear.bias"] + bias
        tensors["linear.weight"] = weight @ tensors["linear.weight"]
    return {k: v for k, v in tensors.items() if re.match(r"layers\.\d{1,3}\.layers\.[01]\.|linear\.(weight|bias)$", k)}


def is_dense(value: object) -> bool:
    """Whether a value of a file is a dense tensor on the CPU with as many bytes in its storage as its shape needs."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _network(state: dict[str, Tensor]) -> tuple[Sequential, int]:
    """The decoder with given weights, and its number of bits."""
    blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
    layers: list[Module] = []
    channels = 3
    for i in range(blocks):
        weight = _tensor(state, f"layers.{i}.layers.0.weight", (None, channels, 3, 3))
        channels = len(weight)
        bias = weight.new_zeros(channels)
        if f"layers.{i}.layers.0.bias" in state:
            bias = _tensor(state, f"layers.{i}.layers.0.bias", (channels,))
        norm = [_tensor(state, f"layers.{i}.layers.1.{name}", (channels,)) for name in NORM]
        if norm[3].min() < 0:
            raise ExtractorError(f"damaged HiDDeN decoder: tensor 'layers.{i}.layers.1.running_var' is negative")
        # In evaluation mode batch norm is affine; folded into the convolution it halves the memory traffic.
        gain = norm[0] / (norm[3] + EPSILON).sqrt()
        convolution = Conv2d(weight.shape[1], channels, 3, padding=1)
        convolution.weight = Parameter(weight * gain[:, None, None, None])
        convolution.bias = Parameter((bias - norm[2]) * gain + norm[1])
        layers += [convolution, GELU()]
    weight = _tensor(state, "linear.weight", (None, channels))
    linear = Linear(channels, len(weight))
    bias = _tensor(state, "linear.bias", (len(weight),))
    linear.weight, linear.bias = Parameter(weight), Parameter(bias)
    network = Sequential(*layers, AdaptiveAvgPool2d(1), Flatten(), linear)
    return network.eval().requires_grad_(False), len(weight)


def _tensor(state: dict[str, Tensor], name: str, shape: tuple[int | None, ...]) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise ExtractorError(f"damaged HiDDeN decoder: tensor {name!r} is missing")
    if len(tensor.shape) != len(shape) or any(s not in (None, t) for s, t in zip(shape, tensor.shape, strict=True)):
        wanted = tuple("any" if s is None else s for s in shape)
        raise ExtractorError(
            f"damaged HiDDeN decoder: tensor {name!r} has shape {tuple(tensor.shape)}, expected {wanted}"
        )
    if not tensor.numel():
        raise ExtractorError(f"damaged HiDDeN decoder: tensor {name!r} is empty")
    if not torch.isfinite(tensor).all():
        raise ExtractorError(f"damaged HiDDeN decoder: tensor {name!r} has values that are not finite")
    return tensor
