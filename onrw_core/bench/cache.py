"""Cache of marked images and readings on disk, so that an interrupted benchmark can be continued.

    OUT/<system>-<hash of its settings>/settings.json
                                        <photo>.png, <photo>.json     a marked photo and its figures
                                        readings.jsonl                one reading a line

A photo counts as marked when its JSON file is there, which is written last; a line cut short by a kill is not counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..commands.output import say
from ..imaging.formats import open_image
from ..imaging.rounding import LEVELS
from .photos import Photo
from .systems import System

__all__ = ["Cache", "generator_for", "publish", "write"]

Record = dict[str, Any]


def generator_for(*parts: object) -> torch.Generator:
    """A generator seeded by its purpose, so that draws do not depend on the order of the work."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Cache:
    """The cache folder of one system.

    Args:
        out: The benchmark's folder.
        system: Whose marks and readings.
        seed: Of the benchmark.
        forget_readings: Drop cached readings (after a change of the reader).
    """

    def __init__(self, out: Path, system: System, seed: int, forget_readings: bool = False) -> None:
        settings = {**system.settings(), "seed": seed}
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = out / f"{re.sub(r'[^a-z0-9]+', '-', system.name.lower()).strip('-')}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True))
        self._log = self.folder / "readings.jsonl"
        if forget_readings:
            self._log.unlink(missing_ok=True)
        self._readings = {(r["mark"], r["attack"]): r for r in self._lines()}

    def mark(self, photo: Photo) -> tuple[Tensor, Record] | None:
        """The marked image (3, H, W) and its record, if a photo with the same pixels has been marked."""
        note, file = self.folder / f"{photo.name}.json", self.folder / f"{photo.name}.png"
        if not (note.is_file() and file.is_file()):
            return None
        record = json.loads(note.read_text(encoding="utf-8"))
        if record["photo_digest"] != photo.digest:
            return None
        with open_image(file) as image:
            levels = np.array(image.convert("RGB"))
        return torch.from_numpy(levels.astype(np.float32) / LEVELS).permute(2, 0, 1).contiguous(), record

    def keep_mark(self, photo: Photo, image: Tensor, record: Record) -> None:
        note, file = self.folder / f"{photo.name}.json", self.folder / f"{photo.name}.png"
        note.unlink(missing_ok=True)
        levels = (image * LEVELS).round().to(torch.uint8).permute(1, 2, 0).numpy()
        temporary = file.with_suffix(".tmp")
        Image.fromarray(levels).save(temporary, format="png")
        os.replace(temporary, file)
        write(note, json.dumps(record))

    def reading(self, mark: str, attack: str) -> Record | None:
        """The reading of the marked image with digest `mark` after `attack`, if there is one."""
        return self._readings.get((mark, attack))

    def keep_reading(self, record: Record) -> None:
        self._readings[record["mark"], record["attack"]] = record
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _lines(self) -> list[Record]:
        if not self._log.is_file():
            return []
        text = self._log.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]  # the line that a kill cut short
            write(self._log, text)
        return [json.loads(line) for line in text.splitlines()]


def publish(path: Path, report: dict[str, Any]) -> None:
    """Write a benchmark's report as JSON, creating its folder, and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(report, indent=1))
    say(f"report: {path}")


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
