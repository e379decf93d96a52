"""Loading of extractors by name or file, and conversion to safetensors.

keyed                the built-in extractor (needs a key)
rivagan              RivaGAN's decoder of the package `invisible-watermark`
FILE.safetensors     a converted HiDDeN or RivaGAN decoder
FILE.pth, .pt        a HiDDeN state dict (tensors only), or TorchScript where it is allowed
FILE.onnx            RivaGAN's decoder
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..arguments import as_path
from ..imaging.atomic import atomic_write
from ..payload.keys import Key
from . import KEYED
from .base import Extractor, ExtractorError
from .third_party.hidden import HiddenExtractor, hidden_state
from .third_party.rivagan import RivaganExtractor, onnx_tensors, rivagan_file
from .third_party.torchscript import TorchScriptExtractor, load_torchscript

__all__ = ["NAMES", "convert", "load_extractor"]

RIVAGAN = "rivagan"
NAMES = (KEYED, RIVAGAN)
FORMAT = "onrw-extractor-1"
MAX_BYTES = 256 << 20  # of a file of weights; those of HiDDeN and RivaGAN have a few MB
ARCHITECTURES = {"hidden": HiddenExtractor, RIVAGAN: RivaganExtractor}


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
        key: The secret key of the keyed extractor.
        num_bits: Raw bits of the keyed extractor; third-party decoders have a fixed number.
        allow_torchscript: Whether the program in a TorchScript file may run.
        values, size: Input of that program, see `TorchScriptExtractor`.

    Raises:
        ExtractorError: If the name is unknown, the key is missing, or the file is not a decoder.
    """
    path, name = as_path("extractor", name_or_path, ExtractorError), os.fspath(name_or_path)
    if name == KEYED:
        if key is None:
            raise ExtractorError("the extractor 'keyed' needs a key; make one with `onrw key new -o FILE`")
        from .keyed.extractor import KeyedExtractor  # its tables are not needed by third-party decoders

        return KeyedExtractor(key, num_bits)
    if name == RIVAGAN:
        return RivaganExtractor.load()
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
            return HiddenExtractor(module.state_dict(), path.stem)  # known weights need no program from the file
        except ExtractorError:
            return TorchScriptExtractor(module, path.stem, values, size)
    return HiddenExtractor(_read_pickle(path), path.stem)


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], allow_torchscript: bool = False) -> Path:
    """Write a decoder's weights as safetensors, which cannot contain code.

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
    if name != RIVAGAN and not path.is_file():
        raise ExtractorError(f"{name}: no such decoder file")
    if name == RIVAGAN or path.suffix == ".onnx":
        architecture, state = RIVAGAN, onnx_tensors(rivagan_file() if name == RIVAGAN else path)
        extractor: Extractor = RivaganExtractor(state)
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
        "sha256": "" if name == RIVAGAN else hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    try:
        with atomic_write(target, overwrite=False) as file:
            file.write(save({k: v.contiguous() for k, v in state.items()}, metadata=metadata))
    except OSError as error:
        raise ExtractorError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    _check_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExtractorError(f"{path}: not a safetensors file, or damaged ({error})") from None
    architecture = metadata.get("architecture")
    if architecture is None:  # a state dict converted by another program
        return "hidden", state
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExtractorError(f"{path}: has a decoder of kind {architecture!r}; this version supports {known}")
    return architecture, state


def _read_pickle(path: Path) -> dict:
    _check_size(path)
    try:
        # weights_only: tensors and containers; other pickles raise an error.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # the unpickler raises any kind of error on damaged files
        # Not torch's message, which advises to load the file without weights_only.
        raise ExtractorError(
            f"{path}: neither a state dict of tensors nor TorchScript; it is damaged, or holds other objects"
        ) from None
    if not isinstance(state, dict):
        raise ExtractorError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state


def _is_torchscript(path: Path) -> bool:
    """Whether an archive has code, as TorchScript has and files of torch.save have not; nothing is loaded."""
    return any("/code/" in f"/{entry.filename}" for entry in _packed(path))


def _check_size(path: Path) -> None:
    """Check the size of a file, packed and unpacked, before it is loaded."""
    if max(path.stat().st_size, sum(entry.file_size for entry in _packed(path))) > MAX_BYTES:
        raise ExtractorError(f"{path}: larger than {MAX_BYTES >> 20} MB, which no supported decoder is")


def _packed(path: Path) -> list[zipfile.ZipInfo]:
    """The directory of a zip archive; empty for other files and damaged archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception:  # BadZipFile, and of damaged directories ValueError, NotImplementedError, struct.error, ...
        return []
