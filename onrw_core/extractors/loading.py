"""Extractors by name or file, and the converter to safetensors.

keyed                the built-in reader (needs a key)
rivagan              RivaGAN's decoder out of the package `invisible-watermark`
FILE.safetensors     a converted HiDDeN or RivaGAN decoder
FILE.pth, .pt        a HiDDeN state dict (tensors only), or TorchScript where it is allowed
FILE.onnx            RivaGAN's decoder
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import atomic_write
from ..keys import Key
from .base import Extractor
from .errors import ExtractorError
from .hidden import HiddenExtractor, hidden_state
from .rivagan import RivaganExtractor, onnx_tensors, rivagan_file
from .torchscript import TorchScriptExtractor, load_torchscript

__all__ = ["NAMES", "convert", "load_extractor"]

NAMES = ("keyed", "rivagan")
FORMAT = "onrw-extractor-1"
ARCHITECTURES = {"hidden": HiddenExtractor, "rivagan": RivaganExtractor}


def load_extractor(
    name_or_path: str | os.PathLike[str],
    key: Key | None = None,
    num_bits: int = 48,
    allow_torchscript: bool = False,
    values: str = "unit",
    size: int | None = None,
) -> Extractor:
    """The extractor of that name or file.

    Args:
        name_or_path: One of `NAMES` or a file.
        key: The secret key of the keyed extractor; others have none.
        num_bits: Raw bits of the keyed extractor; others have their own.
        allow_torchscript: Whether the program in a TorchScript file may run.
        values, size: What that program takes, see `TorchScriptExtractor`.

    Raises:
        ExtractorError: If the name is unknown, the key is missing, or the file is not a decoder.
    """
    name = os.fspath(name_or_path)
    if name == "keyed":
        if key is None:
            raise ExtractorError("the extractor 'keyed' needs a key; make one with `onrw key new -o FILE`")
        from .keyed import KeyedExtractor  # its tables are not built for others' decoders

        return KeyedExtractor(key, num_bits)
    if name == "rivagan":
        return RivaganExtractor.load()
    path = Path(name)
    if not path.is_file():
        raise ExtractorError(f"no extractor {name!r}: choose from {', '.join(NAMES)} or give a decoder file")
    if path.suffix == ".safetensors":
        architecture, state = _read_safetensors(path)
        return ARCHITECTURES[architecture](state)
    if path.suffix == ".onnx":
        return RivaganExtractor(onnx_tensors(path))
    if _is_torchscript(path):
        module = load_torchscript(path, allow_torchscript)
        try:
            return HiddenExtractor(module.state_dict(), path.stem)  # known weights need no foreign program
        except ExtractorError:
            return TorchScriptExtractor(module, path.stem, values, size)
    return HiddenExtractor(_read_pickle(path), path.stem)


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], allow_torchscript: bool = False) -> Path:
    """Write a decoder's weights as safetensors, which hold tensors and nothing that runs.

    Args:
        source: "rivagan", or a .onnx, .pth, .safetensors or TorchScript file of a HiDDeN or RivaGAN decoder.
        target: The file to write; its name ends with .safetensors.
        allow_torchscript: See `load_extractor`.

    Raises:
        ExtractorError: If `source` is no such decoder, or `target` exists or cannot be written.
    """
    name, target = os.fspath(source), Path(target)
    if target.suffix != ".safetensors":
        raise ExtractorError(f"{target}: the name of the converted file must end with .safetensors")
    if target.exists():
        raise ExtractorError(f"{target}: exists already; choose another name")
    path = Path(name)
    if name != "rivagan" and not path.is_file():
        raise ExtractorError(f"{name}: no such decoder file")
    if name == "rivagan" or path.suffix == ".onnx":
        architecture, state = "rivagan", onnx_tensors(rivagan_file() if name == "rivagan" else path)
        extractor = RivaganExtractor(state)
    elif path.suffix == ".safetensors":
        architecture, state = _read_safetensors(path)
        state = hidden_state(state) if architecture == "hidden" else state
        extractor = ARCHITECTURES[architecture](state)
    else:
        torchscript = _is_torchscript(path)
        loaded = load_torchscript(path, allow_torchscript).state_dict() if torchscript else _read_pickle(path)
        architecture, state = "hidden", hidden_state(loaded)
        extractor = HiddenExtractor(state)
    metadata = {
        "format": FORMAT,
        "architecture": architecture,
        "num_bits": str(extractor.num_bits),
        "source": path.name,
        "sha256": "" if name == "rivagan" else hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    try:
        with atomic_write(target) as file:
            file.write(save({k: v.contiguous() for k, v in state.items()}, metadata=metadata))
    except OSError as error:
        raise ExtractorError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExtractorError(f"{path}: not a safetensors file, or damaged ({error})") from None
    architecture = metadata.get("architecture")
    if architecture is None:  # a state dict that somebody else converted
        return "hidden", state
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExtractorError(f"{path}: holds a decoder of kind {architecture!r}; this version knows {known}")
    return architecture, state


def _read_pickle(path: Path) -> dict:
    try:
        # weights_only: tensors and containers; a pickle that wants to run something is an error.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        reason = str(error).strip().splitlines()
        raise ExtractorError(
            f"{path}: neither a state dict of tensors nor TorchScript ({reason[0] if reason else 'unreadable'})"
        ) from None
    if not isinstance(state, dict):
        raise ExtractorError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def _is_torchscript(path: Path) -> bool:
    """A TorchScript archive has code in it; a file of torch.save has none. Nothing is loaded to find out."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in f"/{name}" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False
