"""The inversion record: the latents from image to noise, and the embeddings that reproduce them under guidance.

Its file is in safetensors format: tensors unchanged, all other fields as JSON in the header.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..diffusion.model import Conditioning
from ..imaging.atomic import atomic_write
from .nested import pack, unpack

__all__ = ["FORMAT", "VERSION", "Inversion"]

FORMAT = "onrw-inversion"
VERSION = 2
FIELDS: dict[str, type | tuple[type, ...]] = {
    "guidance": (int, float),
    "method": str,
    "model": str,
}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 40  # characters of a damaged value repeated in an error


@dataclass(frozen=True)
class Inversion:
    """An inverted image: its path along the ODE.

    Attributes:
        latents: The pivots in sigma space, (steps + 1, 1, C, h, w), float32; ``latents[i]`` is at ``sigmas[i]``, and
            the last is the image's latent.
        sigmas: (steps + 1,), descending.
        null_embeddings: Optimised null embedding of each step, (steps, T, C); None if `null` is used in every step.
        positive: The prompt.
        null: The unconditional embedding; None for models without one.
        guidance: Guidance of the sampling.
        method: "ddim", "null-text", "negative-prompt" or "fixed-point".
        model: `DiffusionModel.name`.
    """

    latents: Tensor
    sigmas: Tensor
    null_embeddings: Tensor | None
    positive: Conditioning
    null: Conditioning | None
    guidance: float = 1.0
    method: str = "ddim"
    model: str = ""

    @property
    def start_sigma(self) -> float:
        return self.sigmas[0].item()

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def unconditional(self) -> Conditioning:
        """The null conditioning; for models without it, the prompt."""
        return self.positive if self.null is None else self.null

    def null_at(self, step: int) -> Conditioning | None:
        """The null conditioning of step `step`, from ``sigmas[step]`` to ``sigmas[step + 1]``."""
        if self.null is None or self.null_embeddings is None:
            return self.null
        return self.null.with_embeddings(self.null_embeddings[step][None])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; an existing file is replaced only when the new file is complete."""
        parts: dict[str, Tensor | None] = {
            "latents": self.latents,
            "sigmas": self.sigmas,
            "null_embeddings": self.null_embeddings,
        }
        header: dict[str, Any] = {
            "guidance": self.guidance,
            "method": self.method,
            "model": self.model,
        }
        for name, conditioning in (("positive", self.positive), ("null", self.null)):
            if conditioning is None:
                continue
            parts[f"{name}.embeddings"] = conditioning.embeddings
            parts[f"{name}.pooled"] = conditioning.pooled
            further: dict[str, Tensor] = {}
            options = pack(dict(conditioning.options), f"{name}.options", further)
            parts |= further
            header[name] = {
                "content": conditioning.content,
                "word": conditioning.word,
                "options": options,
                "missing": conditioning.missing,
            }
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in parts.items() if t is not None}
        metadata = {"format": FORMAT, "version": str(VERSION), "inversion": json.dumps(header)}
        with atomic_write(path) as file:
            file.write(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inversion:
        """Read a file written by `save`; tensors on the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is truncated, not an inversion, of another version, or incomplete.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such inversion; save one first, or correct the path")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                _check_format(path, metadata)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{path}: truncated or not a safetensors file ({error}); invert the image again"
            ) from error
        try:
            inversion = _built(json.loads(metadata["inversion"]), tensors)
        except KeyError as error:
            raise ValueError(f"{path}: the inversion misses {error}; invert the image again") from error
        except (TypeError, ValueError, OverflowError, RecursionError) as error:  # RecursionError: deeply nested JSON
            raise ValueError(f"{path}: a damaged inversion ({error}); invert the image again") from error
        return inversion


def _built(header: Any, tensors: dict[str, Tensor]) -> Inversion:
    """The record of header and tensors.

    Raises:
        KeyError, TypeError, ValueError: A part is missing, of another type, or inconsistent with the others.
    """
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    for name, kind in FIELDS.items():
        if not isinstance(header[name], kind):
            raise TypeError(f"{name} is {str(header[name])[:SHOWN]!r}")
    conditionings = {name: _conditioning(name, header, tensors) for name in ("positive", "null") if name in header}
    if "positive" not in conditionings:
        raise KeyError("positive")
    latents, sigmas = tensors["latents"], tensors["sigmas"]
    null_embeddings = tensors.get("null_embeddings")
    _check_tensor("sigmas", sigmas, (None,))
    _check_tensor("latents", latents, (len(sigmas), 1, None, None, None))
    if null_embeddings is not None:
        _check_tensor("null_embeddings", null_embeddings, (len(sigmas) - 1, None, None))
    if len(sigmas) < 2 or not (sigmas[1:] <= sigmas[:-1]).all() or sigmas[-1] < 0:
        raise ValueError("its sigmas do not descend to 0 or above")
    if not math.isfinite(header["guidance"]):
        raise ValueError("guidance is not finite")
    return Inversion(
        latents=latents,
        sigmas=sigmas,
        null_embeddings=null_embeddings,
        positive=conditionings["positive"],
        null=conditionings.get("null"),
        guidance=float(header["guidance"]),
        method=header["method"],
        model=header["model"],
    )


def _conditioning(name: str, header: dict, tensors: dict[str, Tensor]) -> Conditioning:
    embeddings, pooled = tensors[f"{name}.embeddings"], tensors.get(f"{name}.pooled")
    _check_tensor(f"{name}.embeddings", embeddings, (None, None, None))
    if pooled is not None:
        _check_tensor(f"{name}.pooled", pooled, (None, None))
    tokens = embeddings.shape[1]
    content, word = (_indices(header[name][kind], tokens) for kind in ("content", "word"))
    options, missing = unpack(header[name]["options"], tensors), header[name]["missing"]
    if not isinstance(options, dict):
        raise TypeError(f"{name}.options is no object")
    if not isinstance(missing, list) or not all(isinstance(part, str) for part in missing):
        raise TypeError(f"{name}.missing is no list of names")
    return Conditioning(
        embeddings=embeddings, pooled=pooled, content=content, word=word, options=options, missing=tuple(missing)
    )


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise a ValueError unless a tensor has that shape (None: any size but 0) and finite floating-point values."""
    sizes = tuple(tensor.shape)
    fits = len(sizes) == len(shape) and all(s == w or (w is None and s) for s, w in zip(sizes, shape, strict=True))
    if not fits:
        raise ValueError(f"{name} has shape {sizes}")
    if tensor.dtype not in FLOATING or not tensor.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite numbers")


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: a safetensors file, but not an inversion; choose a saved inversion")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: inversion format {metadata.get('version')}, this version reads {VERSION}; invert the image again"
        )


def _indices(values: Any, tokens: int) -> tuple[int, ...] | None:
    """Indices of tokens, or None."""
    if values is None:
        return None
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < tokens for value in values):
        raise ValueError(f"{str(values)[:SHOWN]} are no indices of {tokens} tokens")
    return tuple(values)
