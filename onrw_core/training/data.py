"""Captioned photos for training: a folder with ``captions.tsv``, decoded once into one array on disk.

``captions.tsv`` holds ``file<TAB>caption`` lines; photos are searched in its folder and in the subfolders. The decoded
cache is a flat uint8 array with an index, memory-mapped, so that a crop costs a copy and not a JPEG. Every photo
number that leaves remainder ``HELD_OUT_EVERY - 1`` is held out of training and serves the metrics of the log.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..imaging.formats import open_image

__all__ = ["PhotoSet", "load_photos", "read_captions", "read_square"]

log = logging.getLogger(__name__)
HELD_OUT_EVERY = 40


def read_captions(folder: Path) -> list[tuple[Path, str]]:
    """Photos of a folder with their captions, in the order of ``captions.tsv``.

    Raises:
        FileNotFoundError: there is no ``captions.tsv``, or a photo that it names is nowhere below the folder.
        ValueError: a line has no tab.
    """
    table = folder / "captions.tsv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} does not exist; give a folder with photos and a captions.tsv (file<TAB>caption)"
        )
    below = {path.name: path for path in sorted(folder.rglob("*.*"), reverse=True)}
    entries = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab:
            raise ValueError(f"{table} line {number} has no tab; each line is file<TAB>caption")
        path = folder / name
        if not path.is_file():
            path = below.get(Path(name).name, path)
        if not path.is_file():
            raise FileNotFoundError(f"{table} line {number} names {name}, which is not in the folder")
        entries.append((path, caption.strip()))
    if not entries:
        raise ValueError(f"{table} is empty; it needs one line file<TAB>caption per photo")
    return entries


def read_square(path: Path, side: int) -> Tensor:
    """The central square of an image, resized: (1,3,side,side) in [0,1]."""
    with open_image(path) as image:
        rgb = image.convert("RGB")
    short = min(rgb.size)
    left, top = (rgb.width - short) // 2, (rgb.height - short) // 2
    square = rgb.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None].float() / 255


@dataclass
class PhotoSet:
    """Decoded photos: ``pixels`` flat uint8, photo i is ``pixels[start[i] : ...].reshape(height, width, 3)``."""

    pixels: np.ndarray
    start: np.ndarray
    size: np.ndarray
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def photo(self, index: int) -> np.ndarray:
        """uint8 array (H,W,3)."""
        height, width = self.size[index]
        begin = self.start[index]
        return self.pixels[begin : begin + height * width * 3].reshape(height, width, 3)

    def indices(self, held_out: bool) -> np.ndarray:
        """Photo numbers of the training part, or of the held-out part."""
        numbers = np.arange(len(self))
        return numbers[(numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]

    def crops(self, rng: np.random.Generator, count: int, side: int) -> Tensor:
        """Random crops of training photos, mirrored at random: (count,3,side,side) in [0,1]."""
        out = np.empty((count, side, side, 3), np.uint8)
        pool = self.indices(held_out=False)
        for k in range(count):
            photo = self.photo(int(rng.choice(pool)))
            top = int(rng.integers(photo.shape[0] - side + 1))
            left = int(rng.integers(photo.shape[1] - side + 1))
            crop = photo[top : top + side, left : left + side]
            out[k] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255.0)

    def square(self, index: int, side: int) -> Tensor:
        """The photo's central square, resized: (3,side,side) in [0,1]."""
        photo = self.photo(index)
        short = min(photo.shape[:2])
        top, left = (photo.shape[0] - short) // 2, (photo.shape[1] - short) // 2
        crop = Image.fromarray(photo[top : top + short, left : left + short])
        if short != side:
            crop = crop.resize((side, side), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1).float().div_(255.0)


def load_photos(folder: Path, cache: Path) -> PhotoSet:
    """Decode the photos of ``folder`` into ``cache`` (once) and map them into memory."""
    entries = read_captions(folder)
    index_file, pixel_file = cache / "photos.json", cache / "photos.u8"
    names = [str(path.relative_to(folder)) for path, _ in entries]
    index = json.loads(index_file.read_text()) if index_file.is_file() else {}
    if index.get("names") != names or not pixel_file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        log.info("decoding %d photos into %s", len(entries), pixel_file)
        sizes = []
        with pixel_file.open("wb") as stream:
            for path, _ in entries:
                with open_image(path) as image:
                    array = np.asarray(image.convert("RGB"))
                sizes.append(array.shape[:2])
                stream.write(array.tobytes())
        index = {"names": names, "sizes": sizes}
        index_file.write_text(json.dumps(index))
    size = np.asarray(index["sizes"], np.int64)
    start = np.concatenate([[0], np.cumsum(size.prod(1) * 3)[:-1]])
    pixels = np.memmap(pixel_file, np.uint8, "r")
    return PhotoSet(pixels, start, size, [caption for _, caption in entries], names)
