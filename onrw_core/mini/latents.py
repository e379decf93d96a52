"""Latents of the training photos at three scales, encoded once and memory-mapped as float16.

Whole photos are encoded with their shorter side at 144, 288 and 576 px, and as mirrored; training takes random
16x16, 32x32 and 64x64 windows out of them, which is cropping by steps of 8 px at no cost.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .autoencoder import FACTOR, PatchAutoencoder
from .data import PhotoSet

__all__ = ["LatentSet"]

log = logging.getLogger(__name__)


class LatentSet:
    """Latents of all photos at one scale, made on first use.

    Args:
        photos: The photos.
        model: The trained autoencoder.
        side: Shorter side in pixels, a multiple of 8.
        cache: Folder of the cached arrays.
        fingerprint: Identifies the autoencoder's weights; other latents in the cache are replaced.
        mirrored: Also encode the mirrored photos.
    """

    def __init__(
        self,
        photos: PhotoSet,
        model: PatchAutoencoder,
        side: int,
        cache: Path,
        fingerprint: str,
        device: str,
        mirrored: bool = True,
    ) -> None:
        self.photos, self.side, self.variants = photos, side, 2 if mirrored else 1
        self.channels = model.config["latent_channels"]
        self.size = np.maximum(side // FACTOR, photos.size * side // photos.size.min(1, keepdims=True) // FACTOR)
        counts = np.repeat(self.size.prod(1) * self.channels, self.variants)
        self.start = np.concatenate([[0], np.cumsum(counts)])
        values, index = cache / f"latents_{side}.f16", cache / f"latents_{side}.json"
        wanted = {"autoencoder": fingerprint, "names": len(photos), "variants": self.variants}
        if not index.is_file() or json.loads(index.read_text()) != wanted:
            self._encode(model, values, device)
            index.write_text(json.dumps(wanted))
        self.values = np.memmap(values, np.float16, "r")

    @torch.no_grad()
    def _encode(self, model: PatchAutoencoder, path: Path, device: str) -> None:
        with path.open("wb") as stream:
            for index in tqdm(range(len(self.photos)), desc=f"latents {self.side}", mininterval=5.0):
                height, width = (self.size[index] * FACTOR).tolist()
                image = Image.fromarray(self.photos.photo(index)).resize((width, height), Image.Resampling.LANCZOS)
                pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float().div(255.0)
                for variant in range(self.variants):
                    latent = model.encode((pixels.flip(-1) if variant else pixels).to(device))
                    stream.write(latent[0].half().cpu().numpy().tobytes())

    def latent(self, index: int, variant: int) -> np.ndarray:
        """float16 array (C,h,w)."""
        begin = self.start[index * self.variants + variant]
        height, width = self.size[index]
        return self.values[begin : begin + self.channels * height * width].reshape(self.channels, height, width)

    def windows(self, rng: np.random.Generator, indices: np.ndarray, side: int) -> Tensor:
        """A random window of each photo in ``indices``: (N,C,side,side) float32."""
        out = np.empty((len(indices), self.channels, side, side), np.float16)
        for k, index in enumerate(indices):
            latent = self.latent(int(index), int(rng.integers(self.variants)))
            top = int(rng.integers(latent.shape[1] - side + 1))
            left = int(rng.integers(latent.shape[2] - side + 1))
            out[k] = latent[:, top : top + side, left : left + side]
        return torch.from_numpy(out).float()
