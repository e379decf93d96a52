"""Latents of the training photos: whole photos encoded once and memory-mapped as float16, or windows encoded afresh.

Training takes random windows out of the encoded photos (also mirrored), which is cropping by steps of 8 px at no cost.
Large windows are rarely drawn, and are encoded when they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..mini.autoencoder import FACTOR, PatchAutoencoder
from .data import PhotoSet

__all__ = ["LatentSet", "encoded_windows"]

WINDOW_PART = 8 / 9  # of the shorter side, as windows of 32 in photos of 36 latent positions
VARIANTS = 2  # as it is, and mirrored


class LatentSet:
    """Latents of all photos at one scale, made on first use.

    Args:
        photos: The photos.
        model: The trained autoencoder.
        side: Shorter side in pixels, a multiple of 8.
        cache: Folder of the cached arrays.
        fingerprint: Identifies the autoencoder's weights; other latents in the cache are replaced.
    """

    def __init__(
        self,
        photos: PhotoSet,
        model: PatchAutoencoder,
        side: int,
        cache: Path,
        fingerprint: str,
        device: str,
    ) -> None:
        self.photos, self.side = photos, side
        self.channels = model.config["latent_channels"]
        self.size = np.maximum(side // FACTOR, photos.size * side // photos.size.min(1, keepdims=True) // FACTOR)
        counts = np.repeat(self.size.prod(1) * self.channels, VARIANTS)
        self.start = np.concatenate([[0], np.cumsum(counts)])
        values, index = cache / f"latents_{side}.f16", cache / f"latents_{side}.json"
        wanted = {"autoencoder": fingerprint, "names": len(photos), "variants": VARIANTS}
        if not index.is_file() or json.loads(index.read_text()) != wanted:
            self._encode(model, values, device)
            index.write_text(json.dumps(wanted))
        self.values = np.memmap(values, np.float16, "r")

    @torch.no_grad()
    def _encode(self, model: PatchAutoencoder, path: Path, device: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            for index in tqdm(range(len(self.photos)), desc=f"latents {self.side}", mininterval=5.0):
                height, width = (self.size[index] * FACTOR).tolist()
                image = Image.fromarray(self.photos.photo(index)).resize((width, height), Image.Resampling.LANCZOS)
                pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float().div(255.0)
                for variant in range(VARIANTS):
                    latent = model.encode((pixels.flip(-1) if variant else pixels).to(device))
                    stream.write(latent[0].half().cpu().numpy().tobytes())

    def latent(self, index: int, variant: int) -> np.ndarray:
        """float16 array (C,h,w)."""
        begin = self.start[index * VARIANTS + variant]
        height, width = self.size[index]
        return self.values[begin : begin + self.channels * height * width].reshape(self.channels, height, width)

    def windows(self, rng: np.random.Generator, indices: np.ndarray, side: int) -> Tensor:
        """A random window of each photo in ``indices``: (N,C,side,side) float32."""
        out = np.empty((len(indices), self.channels, side, side), np.float16)
        for k, index in enumerate(indices):
            latent = self.latent(int(index), int(rng.integers(VARIANTS)))
            top = int(rng.integers(latent.shape[1] - side + 1))
            left = int(rng.integers(latent.shape[2] - side + 1))
            out[k] = latent[:, top : top + side, left : left + side]
        return torch.from_numpy(out).float()


@torch.no_grad()
def encoded_windows(
    photos: PhotoSet, model: PatchAutoencoder, rng: np.random.Generator, indices: np.ndarray, side: int, device: str
) -> Tensor:
    """A random square of each photo, mirrored at random, as a latent: (N,C,side,side) float32 on the device."""
    squares = []
    for index in indices:
        photo = photos.photo(int(index))
        span = int(min(photo.shape[:2]) * WINDOW_PART)
        top = int(rng.integers(photo.shape[0] - span + 1))
        left = int(rng.integers(photo.shape[1] - span + 1))
        square = Image.fromarray(photo[top : top + span, left : left + span])
        pixels = np.asarray(square.resize((side * FACTOR, side * FACTOR), Image.Resampling.LANCZOS))
        squares.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float().div(255.0)
    return model.encode(images.to(device))
