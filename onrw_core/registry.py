"""A local registry: what the ids in marks stand for.

One SQLite file. A row says of an id when it was given, to which file, what the picture looks like, and what was noted.
It is made only by `Registry.create`, changed only by `add`, and opened read-only for everything else, so that reading
marks never writes.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from .metrics import luminance

__all__ = ["Entry", "Registry", "RegistryError", "perceptual_hash"]

APPLICATION_ID = 0x4F4E5257  # "ONRW", in the header of the file
VERSION = 1
HASH_SIDE = 8
HASH = re.compile(f"[0-9a-f]{{{HASH_SIDE**2 // 4}}}")
SIMILAR = 6  # of 64 bits: a picture scaled or compressed differs from itself in fewer, from others in half of them
REMEDY = "restore it from a copy, or choose another file"

SCHEMA = """
CREATE TABLE entries (
    id TEXT NOT NULL,
    time REAL NOT NULL,
    file_hash TEXT NOT NULL DEFAULT '',
    perceptual_hash TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    prompt_hash TEXT NOT NULL DEFAULT ''
);
"""


class RegistryError(ValueError):
    """A registry that is missing, damaged, or of another kind."""


@dataclass(frozen=True)
class Entry:
    """What an id stands for.

    Attributes:
        id: Lower-case hexadecimal, as readings show it.
        time: When it was added, seconds since 1970 (UTC).
        file_hash: SHA-256 of the marked file, or "".
        perceptual_hash: See `perceptual_hash`, or "".
        note: Free text.
        prompt_hash: SHA-256 of prompt or workflow, or "".
    """

    id: str
    time: float
    file_hash: str = ""
    perceptual_hash: str = ""
    note: str = ""
    prompt_hash: str = ""


class Registry:
    """The registry in one file.

    Args:
        path: An existing registry; see `create`.

    Raises:
        RegistryError: If there is none, or it is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise RegistryError(f"registry {self.path}: no such file; it is made when the first id is registered")
        with self._open() as connection:
            kind = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if kind != APPLICATION_ID:
                raise RegistryError(f"registry {self.path}: a database, but not a registry of ONRW; {REMEDY}")
            if version != VERSION:
                raise RegistryError(
                    f"registry {self.path}: version {version}, this program knows {VERSION}; use a newer one"
                )
            if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise RegistryError(f"registry {self.path}: damaged; {REMEDY}")

    @classmethod
    def create(cls, path: Path | str) -> Registry:
        """Open the registry at `path`; make an empty one where there is none.

        Raises:
            RegistryError: If it cannot be made, or something else is there.
        """
        path = Path(path)
        if not path.exists():
            try:
                connection = sqlite3.connect(path)
                try:
                    kind = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION};"
                    connection.executescript(f"BEGIN; {kind} {SCHEMA} COMMIT;")
                finally:
                    connection.close()
            except sqlite3.Error as error:
                raise RegistryError(f"registry {path}: cannot be made ({error})") from None
        return cls(path)

    def add(
        self,
        id: str,
        *,
        file_hash: str = "",
        perceptual_hash: str = "",
        note: str = "",
        prompt_hash: str = "",
        time: float | None = None,
    ) -> Entry:
        """Register an id; one id may be registered for several pictures.

        Args:
            id: Hexadecimal, as messages carry it.
            file_hash, perceptual_hash, note, prompt_hash: See `Entry`.
            time: Seconds since 1970; now by default.

        Raises:
            RegistryError: If `id` is not hexadecimal, or the file cannot be written.
        """
        entry = Entry(_normal(id), _now() if time is None else time, file_hash, perceptual_hash, note, prompt_hash)
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT INTO entries (id, time, file_hash, perceptual_hash, note, prompt_hash) VALUES (?,?,?,?,?,?)",
                (entry.id, entry.time, file_hash, perceptual_hash, note, prompt_hash),
            )
        return entry

    def lookup(self, id: str) -> list[Entry]:
        """What was registered under an id, oldest first.

        Leading zeros do not count: how many an id has depends on the number of bits of its mark.

        Raises:
            RegistryError: If `id` is not hexadecimal, or the file cannot be read.
        """
        return self._select("WHERE ltrim(id, '0') = ? ORDER BY time", _normal(id).lstrip("0"))

    def entries(self) -> list[Entry]:
        """Everything, oldest first."""
        return self._select("ORDER BY time")

    def similar(self, image_hash: str, distance: int = SIMILAR) -> list[tuple[int, Entry]]:
        """Entries of pictures that look alike: (number of different bits of `perceptual_hash`, entry), nearest first.

        This holds without any mark, and proves nothing: other pictures of the same scene look alike as well.
        """
        number = int(image_hash, 16)
        found = [
            ((int(entry.perceptual_hash, 16) ^ number).bit_count(), entry)
            for entry in self.entries()
            if HASH.fullmatch(entry.perceptual_hash)
        ]
        return sorted((pair for pair in found if pair[0] <= distance), key=lambda pair: pair[0])

    def _select(self, condition: str, *values: str) -> list[Entry]:
        query = f"SELECT id, time, file_hash, perceptual_hash, note, prompt_hash FROM entries {condition}"
        with self._open() as connection:
            return [Entry(*row) for row in connection.execute(query, values)]

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={'rw' if write else 'ro'}", uri=True)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise RegistryError(f"registry {self.path}: damaged or not usable ({error}); {REMEDY}") from None


def perceptual_hash(image: Tensor) -> str:
    """64 bits that stay alike when a picture is scaled, compressed or brightened: signs of horizontal differences.

    Args:
        image: (3, H, W) in [0, 1].

    Returns:
        16 hexadecimal digits (the "dHash" of N. Krawetz, 2013); alike pictures differ in few bits.
    """
    grey = luminance(image.float().cpu())[None]
    small = F.interpolate(grey, size=(HASH_SIDE, HASH_SIDE + 1), mode="bilinear", antialias=True)[0, 0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{HASH_SIDE**2 // 4}x}"


def _now() -> float:
    return time.time()


def _normal(id: str) -> str:
    digits = id.strip().lower().removeprefix("0x")
    if not digits or not set(digits) <= set("0123456789abcdef"):
        raise RegistryError(f"id {id[:40]!r}: not hexadecimal; use the digits 0-9 and a-f")
    return digits
