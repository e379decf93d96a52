"""The record of an inversion: the latents on the way from image to noise, and what retraces them under guidance.

It is one safetensors file: tensors as they are, everything else as JSON in the header.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import atomic_write
from .model import Conditioning

__all__ = ["FORMAT", "VERSION", "Inversion"]

FORMAT = "onrw-inversion"
VERSION = 1


@dataclass(frozen=True)
class Inversion:
    """An image as a path of the ODE.

    Attributes:
        latents: The pivots in sigma space, (steps + 1, 1, C, h, w), float32; ``latents[i]`` lies at ``sigmas[i]``, the
            last one is the image's latent.
        sigmas: (steps + 1,), descending.
        null_embeddings: Optimised null embedding of each step, (steps, T, C); None where `null` serves every step.
        positive: The prompt.
        null: The unconditional embedding; None for models without one.
        guidance: Guidance at which the path is meant to be retraced.
        method: "ddim", "null-text", "negative-prompt" or "fixed-point".
        model: `DiffusionModel.name`.
        image: `fingerprint.image_digest` of the image, or "".
        requires_positive: The prompt held parts that a file cannot, so that it must be given again for a replay.
    """

    latents: Tensor
    sigmas: Tensor
    null_embeddings: Tensor | None
    positive: Conditioning
    null: Conditioning | None
    guidance: float = 1.0
    method: str = "ddim"
    model: str = ""
    image: str = ""
    requires_positive: bool = False

    @property
    def start_sigma(self) -> float:
        return self.sigmas[0].item()

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def null_at(self, step: int) -> Conditioning | None:
        """The null conditioning of step `step`, the one from ``sigmas[step]`` to ``sigmas[step + 1]``."""
        if self.null is None or self.null_embeddings is None:
            return self.null
        return self.null.with_embeddings(self.null_embeddings[step][None])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; an existing one is replaced only when the new one is complete."""
        tensors = {"latents": self.latents, "sigmas": self.sigmas, "null_embeddings": self.null_embeddings}
        header: dict = {
            "guidance": self.guidance,
            "method": self.method,
            "model": self.model,
            "image": self.image,
            "requires_positive": self.requires_positive or self.positive.opaque is not None,
        }
        for name, conditioning in (("positive", self.positive), ("null", self.null)):
            if conditioning is None:
                continue
            tensors[f"{name}.embeddings"] = conditioning.embeddings
            tensors[f"{name}.pooled"] = conditioning.pooled
            header[name] = {"content": conditioning.content, "word": conditioning.word}
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items() if t is not None}
        metadata = {"format": FORMAT, "version": str(VERSION), "inversion": json.dumps(header)}
        with atomic_write(path) as file:
            file.write(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inversion:
        """Read a file that `save` wrote; tensors on the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is truncated, not an inversion, of another version, or misses a part.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such inversion; save one first, or correct the path")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                _check_format(path, metadata)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = json.loads(metadata["inversion"])
            conditionings = {
                name: Conditioning(
                    embeddings=tensors[f"{name}.embeddings"],
                    pooled=tensors.get(f"{name}.pooled"),
                    content=_indices(header[name]["content"]),
                    word=_indices(header[name]["word"]),
                )
                for name in ("positive", "null")
                if name in header
            }
            inversion = cls(
                latents=tensors["latents"],
                sigmas=tensors["sigmas"],
                null_embeddings=tensors.get("null_embeddings"),
                positive=conditionings["positive"],
                null=conditionings.get("null"),
                guidance=float(header["guidance"]),
                method=header["method"],
                model=header["model"],
                image=header["image"],
                requires_positive=header["requires_positive"],
            )
        except SafetensorError as error:
            raise ValueError(
                f"{path}: truncated or not a safetensors file ({error}); invert the image again"
            ) from error
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: the inversion misses {error}; invert the image again") from error
        if len(inversion.latents) != len(inversion.sigmas):
            raise ValueError(f"{path}: latents and sigmas differ in number; invert the image again")
        return inversion


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: a safetensors file, but not an inversion; choose a file that an inversion wrote")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: inversion format {metadata.get('version')}, this version reads {VERSION}; invert the image again"
        )


def _indices(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
