"""RivaGAN's decoder (Zhang et al. 2019, arXiv 1909.01285), rebuilt from an ONNX file.

The file is part of the package `invisible-watermark`.

    h = two 11x11 convolutions with tanh and batch norm,
    attention = softmax over the 32 bits of a second such stack,
    bit k = mean over all positions of h_k * attention_k

ONNX is a protocol-buffer message, and only its named weights are needed. They are read here without an ONNX library, so
that the decoder is differentiable.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Module, Parameter, Sequential, Tanh

from ...imaging.geometry import Geometry
from ..base import WINDOW, Extractor, ExtractorError

__all__ = ["RivaganExtractor", "onnx_tensors", "rivagan_file"]

PACKAGE, FILE = "imwatermark", "rivagan_decoder.onnx"
REMEDY = "install it with `pip install 'onrw[rivagan]'`"
THRESHOLD = 0.52  # decision threshold of the package
# The logits are of the order of ten; the temperature of the message loss is compensated.
SCALE = 0.1
KERNEL = 11
MAX_BYTES = 64 << 20

# Field numbers of onnx.proto (ModelProto, GraphProto, TensorProto) and wire types of protocol buffers.
GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 1, 2, 4, 8, 9
FLOAT32 = 1
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class RivaganExtractor(Extractor):
    """RivaGAN's decoder: 32 bits.

    Args:
        state: The ONNX file's initializers, see `onnx_tensors`.

    Raises:
        ExtractorError: The tensors are not those of RivaGAN.
    """

    name = "rivagan"
    window = WINDOW

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._bits, self.num_bits = _stack(state, "_conv", last_norm=False)
        self._attention, attended = _stack(state, "_attention", last_norm=True)
        if attended != self.num_bits:
            raise ExtractorError("not RivaGAN's decoder: its attention has another number of bits than its values")

    @classmethod
    def load(cls, path: str | Path | None = None) -> RivaganExtractor:
        """Read the ONNX file at `path`, or that of the installed package."""
        return cls(onnx_tensors(rivagan_file() if path is None else path))

    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        if next(self._bits.parameters()).device != images.device:
            self._bits.to(images.device)
            self._attention.to(images.device)
        frame = images.flip(1) * 2 - 1  # the package uses BGR
        values = self._bits(frame) * self._attention(frame).softmax(1)
        return (values.mean((2, 3)) - THRESHOLD) * SCALE


def rivagan_file() -> Path:
    """The decoder's file in the installed package, which is not imported (it would need OpenCV).

    Raises:
        ExtractorError: The package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ExtractorError(f"the extractor 'rivagan' needs the package invisible-watermark; {REMEDY}")
    path = Path(found.submodule_search_locations[0]) / FILE
    if not path.is_file():
        raise ExtractorError(f"the installed package invisible-watermark has no {FILE}; {REMEDY}")
    return path


def onnx_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named float32 weights of an ONNX file.

    Raises:
        ExtractorError: The file cannot be read, or is not ONNX.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ExtractorError(f"{path}: larger than {MAX_BYTES >> 20} MB, which this decoder is not")
        data = path.read_bytes()
    except OSError as error:
        raise ExtractorError(f"{path}: {error.strerror or error}") from None
    tensors = {}
    try:
        for field, graph in _fields(memoryview(data)):
            if field != GRAPH:
                continue
            for inner, message in _fields(_bytes(field, graph)):
                if inner == INITIALIZER:
                    name, tensor = _tensor(_bytes(inner, message))
                    if tensor is not None:
                        tensors[name] = tensor
    except (ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ExtractorError(f"{path}: not an ONNX file, or damaged ({error})") from None
    if not tensors:
        raise ExtractorError(f"{path}: not an ONNX file with weights")
    return tensors


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Iterate over the fields of a protocol-buffer message: (field number, integer or bytes)."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(message, position)
            yield field, value
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if wire == LENGTH:
            size, position = _varint(message, position)
        if size is None or position + size > len(message):
            raise ValueError(f"malformed field {field} at byte {position}")
        yield field, message[position : position + size]
        position += size


def _bytes(field: int, value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError(f"a number where field {field} has bytes")
    return value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"malformed number at byte {position}")


def _tensor(message: memoryview) -> tuple[str, Tensor | None]:
    dims: list[int] = []
    kind: int | memoryview = 0
    name, data = "", []
    for field, value in _fields(message):
        if field == DIMS and isinstance(value, int):
            dims.append(value)
        elif field == DIMS:
            packed, position = _bytes(field, value), 0
            while position < len(packed):
                number, position = _varint(packed, position)
                dims.append(number)
        elif field == DATA_TYPE:
            kind = value
        elif field == NAME:
            name = bytes(_bytes(field, value)).decode()
        elif field in (RAW_DATA, FLOAT_DATA):
            data.append(_bytes(field, value))  # both are little-endian float32
    if kind != FLOAT32:
        return name, None
    return name, torch.from_numpy(np.frombuffer(b"".join(data), "<f4").astype(np.float32).reshape(dims))


def _stack(state: dict[str, Tensor], prefix: str, last_norm: bool) -> tuple[Sequential, int]:
    """Convolution, tanh, batch norm, convolution (tanh, batch norm), with the kernels of one video frame as 2-D."""
    layers: list[Module] = []
    channels = 3
    for i in (0, 3):
        weight = _weight(state, f"{prefix}.{i}.weight", 5)[:, :, 0]
        convolution = Conv2d(channels, len(weight), KERNEL, padding=KERNEL // 2)
        channels = len(weight)
        if weight.shape != convolution.weight.shape:
            raise ExtractorError(f"not RivaGAN's decoder: {prefix}.{i}.weight has shape {tuple(weight.shape)}")
        bias = _weight(state, f"{prefix}.{i}.bias", 1, len(weight))
        convolution.weight, convolution.bias = Parameter(weight), Parameter(bias)
        layers.append(convolution)
        if i == 0 or last_norm:
            norm = BatchNorm2d(len(weight))
            names = ("weight", "bias", "running_mean", "running_var")
            values = [_weight(state, f"{prefix}.{i + 2}.{name}", 1, len(weight)) for name in names]
            norm.weight, norm.bias = map(Parameter, values[:2])
            norm.running_mean, norm.running_var = values[2:]
            if values[3].min() < 0:
                raise ExtractorError(f"damaged RivaGAN decoder: tensor '{prefix}.{i + 2}.running_var' is negative")
            layers += [Tanh(), norm]
    return Sequential(*layers).eval().requires_grad_(False), channels


def _weight(state: dict[str, Tensor], name: str, dimensions: int, length: int | None = None) -> Tensor:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != dimensions or not tensor.numel() or length not in (None, len(tensor)):
        raise ExtractorError(f"not RivaGAN's decoder: tensor {name!r} is missing or of another shape")
    if not torch.isfinite(tensor).all():
        raise ExtractorError(f"damaged RivaGAN decoder: tensor {name!r} holds values that are not finite")
    return tensor.float()
