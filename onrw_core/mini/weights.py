"""Weight files of the embedded model: float16 safetensors with their configuration, checked by SHA-256 on loading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .autoencoder import PatchAutoencoder
from .text import TextEncoder, Tokenizer
from .unet import UNet, UNetConfig

__all__ = [
    "AUTOENCODER_FILE",
    "CHECKSUM_FILE",
    "FOREIGN_FILE",
    "TEXT_FILE",
    "UNET_FILE",
    "WEIGHTS",
    "export_module",
    "load_autoencoder",
    "load_text",
    "load_unet",
]

Module = TypeVar("Module", bound=nn.Module)
WEIGHTS = Path(__file__).parent / "weights"
AUTOENCODER_FILE = "mini_autoencoder.safetensors"
UNET_FILE = "mini_unet.safetensors"
TEXT_FILE = "mini_text.safetensors"
FOREIGN_FILE = "mini_foreign_autoencoder.safetensors"
CHECKSUM_FILE = "SHA256SUMS"


def export_module(module: nn.Module, path: Path, config: dict[str, Any]) -> None:
    """Write a module's weights as float16 with its configuration, and record its checksum in `CHECKSUM_FILE`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in module.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary, metadata={"config": json.dumps(config)})
    temporary.chmod(0o644)
    os.replace(temporary, path)
    sums = _checksums(path.parent) | {path.name: _sha256(path)}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    temporary.write_text(lines, encoding="utf-8")
    os.replace(temporary, path.parent / CHECKSUM_FILE)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUM_FILE
    if not path.is_file():
        return {}
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name: digest for digest, name in pairs}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict (float16) and configuration of a weight file, whose checksum is verified.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file's checksum differs or is not listed, or it has no configuration.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; install the package again, or train it with `onrw train mini`")
    expected = _checksums(path.parent).get(path.name)
    if expected is None:
        raise ValueError(f"{path.name} is not listed in {path.parent / CHECKSUM_FILE}; export it with its checksum")
    if _sha256(path) != expected:
        raise ValueError(f"{path} does not match its SHA-256 in {CHECKSUM_FILE}; it is damaged, fetch it again")
    with safe_open(path, "pt") as file:
        config = (file.metadata() or {}).get("config")
        if config is None:
            raise ValueError(f"{path} has no configuration in its metadata; it is not a file of the embedded model")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(config)


def _frozen(build: Callable[[], Module], state: dict[str, torch.Tensor], device: str | torch.device) -> Module:
    """Build a module, load its weights and freeze it, without a change to the global random state."""
    with torch.random.fork_rng(devices=[]):
        module = build()
    module.load_state_dict(state)
    return module.to(device).eval().requires_grad_(False)


def load_autoencoder(
    folder: Path = WEIGHTS, device: str | torch.device = "cpu", foreign: bool = False
) -> PatchAutoencoder:
    """The embedded autoencoder, or the separate one for regeneration attacks; frozen, float32."""
    state, config = _read(folder / (FOREIGN_FILE if foreign else AUTOENCODER_FILE))
    return _frozen(lambda: PatchAutoencoder(**config), state, device)


def load_unet(folder: Path = WEIGHTS, device: str | torch.device = "cpu") -> UNet:
    """The UNet, frozen, float32."""
    state, config = _read(folder / UNET_FILE)
    return _frozen(lambda: UNet(UNetConfig.from_dict(config)), state, device)


def load_text(folder: Path = WEIGHTS, device: str | torch.device = "cpu") -> tuple[Tokenizer, TextEncoder]:
    """The tokenizer and the text encoder, frozen, float32."""
    state, config = _read(folder / TEXT_FILE)
    tokenizer = Tokenizer(config["vocabulary"])
    return tokenizer, _frozen(lambda: TextEncoder(len(tokenizer)), state, device)
