"""A local registry of the ids in watermarks.

It is one SQLite file. A row has an id, its time, hashes of the file and of the image, a thumbnail of the image, and a
note.
It is made only by `Registry.create`, changed only by `add` and `add_for_result`, and opened read-only for everything
else, so that reading marks never writes. The one exception is a commit that a kill cut short: SQLite's journal beside
the file takes it back, for which the file is opened for writing once.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..arguments import as_path, as_whole, check_type, is_number, shown
from ..imaging.metrics import luminance
from ..imaging.pixels import as_rgb
from ..imaging.thumbnail import LIKE, Thumbnail, likeness
from .keys import excerpt, hidden_keys

__all__ = ["Entry", "Registry", "RegistryError", "copied", "perceptual_hash"]

APPLICATION_ID = 0x4F4E5257  # "ONRW", in the header of the file
VERSION = 1
HASH_SIDE = 8
HASH = re.compile(f"[0-9a-f]{{{HASH_SIDE**2 // 4}}}")
SIMILAR = 6  # of 64 bits: an image differs from a scaled or compressed copy in fewer, from other images in about half
LATEST = 253402300800.0  # seconds: the year 10000, the limit of datetime
WAIT_SECONDS = 60.0  # time to wait for other writing processes
REMEDY = "restore it from a copy, or choose another file"

COLUMNS = "id, time, file_hash, perceptual_hash, thumbnail, note"
SCHEMA = """
CREATE TABLE entries (
    id TEXT NOT NULL,
    time REAL NOT NULL,
    file_hash TEXT NOT NULL DEFAULT '',
    perceptual_hash TEXT NOT NULL DEFAULT '',
    thumbnail TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT ''
);
"""


class RegistryError(ValueError):
    """A registry that is missing, damaged, or of another kind."""


@dataclass(frozen=True)
class Entry:
    """An entry of the registry.

    Attributes:
        id: Lower-case hexadecimal, as readings show it.
        time: When it was added, seconds since 1970 (UTC).
        file_hash: SHA-256 of the marked file, or "".
        perceptual_hash: See `perceptual_hash`, or "".
        thumbnail: Text of the `Thumbnail` of the marked image, or "".
        note: Free text.
    """

    id: str
    time: float
    file_hash: str = ""
    perceptual_hash: str = ""
    thumbnail: str = ""
    note: str = ""


class Registry:
    """The registry in one file.

    Args:
        path: An existing registry; see `create`.

    Raises:
        RegistryError: If there is none, or it is damaged.
    """

    @hidden_keys()
    def __init__(self, path: Path | str) -> None:
        self.path = as_path("registry", path, RegistryError)
        if not os.path.exists(self.path):  # not `Path.exists`, which raises an error of a name that is too long
            raise RegistryError(f"registry {self.path}: no such file; it is created when the first id is registered")
        if not self.path.is_file():
            raise RegistryError(f"registry {self.path}: is a folder, a pipe or a device; name a file")
        with self._open() as connection:
            kind = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if kind != APPLICATION_ID:
                raise RegistryError(f"registry {self.path}: a database, but not a registry of ONRW; {REMEDY}")
            if version != VERSION:
                raise RegistryError(
                    f"registry {self.path}: version {version}, this program reads {VERSION}; update onrw"
                )
            content = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
            if ("table", "entries") not in content or any(kind in ("view", "trigger") for kind, _ in content):
                raise RegistryError(f"registry {self.path}: damaged (no table of entries alone); {REMEDY}")
            if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise RegistryError(f"registry {self.path}: damaged; {REMEDY}")

    @classmethod
    @hidden_keys()
    def create(cls, path: Path | str) -> Registry:
        """Open the registry at `path`; make an empty one where there is none.

        Raises:
            RegistryError: If it cannot be made, or something else is there.
        """
        path = as_path("registry", path, RegistryError)
        # An empty file, or one that the journal makes empty again: of a process that was killed while it made it.
        if not os.path.exists(path) or (path.is_file() and (not path.stat().st_size or _has_journal(path))):
            try:
                with suppress(FileNotFoundError):
                    os.lstat(_journal(path))  # a name too long for it is refused before there is an empty file
                connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
                try:
                    connection.execute("BEGIN IMMEDIATE")  # one process makes it, the others wait
                    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                        connection.execute(f"PRAGMA user_version={VERSION}")
                        connection.execute(SCHEMA)
                    connection.execute("COMMIT")
                finally:
                    connection.close()
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, sqlite3.DatabaseError) and os.path.isfile(path) and path.stat().st_size:
                    raise _explained(path, error) from None  # it is there
                raise RegistryError(
                    f"registry {path}: cannot be made ({error}); name a file in a folder that exists and can be "
                    "written, with a shorter name if it is a long one"
                ) from None
        return cls(path)

    def add(
        self,
        id: str,
        *,
        file_hash: str = "",
        perceptual_hash: str = "",
        thumbnail: str = "",
        note: str = "",
        time: float | None = None,
        own: bool = False,
    ) -> Entry:
        """Register an id; one id may be registered for several images, and is once for each marked file.

        Args:
            id: Hexadecimal, as messages carry it.
            file_hash, perceptual_hash, thumbnail, note: See `Entry`.
            time: Seconds since 1970, before the year 10000; now by default.
            own: Whether no other image may have the id, see `has_another`.

        Raises:
            RegistryError: If `id` is not hexadecimal, another argument is none of its kind, another image has the id,
                or the file cannot be written.
        """
        details = {"file_hash": file_hash, "perceptual_hash": perceptual_hash, "thumbnail": thumbnail, "note": note}
        return self._add(id, details, time, own)[0]

    def add_for_result(self, id: str, *, own: bool = False, **details: str) -> Callable[[], None]:
        """`add` the entry of a file that is about to get its name.

        Returns:
            What takes the entry back, if this call made it: for a file that does not get its name after all.
        """
        entry, made = self._add(id, details, None, own)

        def take_back() -> None:
            if made:
                with self._open(write=True) as connection:
                    names = COLUMNS.replace(",", " = ? AND")
                    connection.execute(f"DELETE FROM entries WHERE {names} = ?", astuple(entry))

        return take_back

    def _add(self, id: str, texts: dict[str, str], time: float | None, own: bool) -> tuple[Entry, bool]:
        """The entry, and whether this call made it."""
        when = _now() if time is None else time
        if not is_number(when) or not 0 <= when < LATEST:
            raise RegistryError(f"time: is {shown(when)}; give seconds since 1970, less than {LATEST:.0f}")
        for name, text in texts.items():
            _check_text(name, text)
        entry = Entry(_normal(id), float(when), **texts)
        with self._open(write=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            same = connection.execute(
                f"SELECT {COLUMNS} FROM entries WHERE id = ? AND file_hash = ? AND note = ? AND file_hash != ''",
                (entry.id, entry.file_hash, entry.note),
            ).fetchone()
            if same is not None:  # of a run that was stopped between this and its journal
                return Entry(*same), False
            if own and _others(self._rows(connection, *self._of(id)), entry.perceptual_hash):
                raise RegistryError(
                    f"registry {self.path}: another image was given the id {entry.id} meanwhile; mark this one again"
                )
            connection.execute(f"INSERT INTO entries ({COLUMNS}) VALUES (?,?,?,?,?,?)", astuple(entry))
        return entry, True

    def lookup(self, id: str) -> list[Entry]:
        """The entries of an id, oldest first.

        Leading zeros are ignored: their number depends on the number of bits of the watermark.

        Raises:
            RegistryError: If `id` is not hexadecimal, or the file cannot be read.
        """
        return self._select(*self._of(id))

    def has_another(self, id: str, image_hash: str) -> bool:
        """Whether an id was given to an image that looks otherwise than the one of that `perceptual_hash`."""
        _check_text("image_hash", image_hash)
        return _others(self.lookup(id), image_hash)

    def of_file(self, file_hash: str) -> list[Entry]:
        """What was registered for a marked file, by the SHA-256 of its content."""
        _check_text("file_hash", file_hash)
        return self._select("WHERE file_hash = ? ORDER BY time", file_hash)

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        return self._select("ORDER BY time")

    def similar(self, image_hash: str, distance: int = SIMILAR) -> list[tuple[int, Entry]]:
        """Entries of images that look alike: (number of different bits of `perceptual_hash`, entry), nearest first.

        This does not use the watermark, and is no proof: other images of the same scene are similar as well.
        """
        _check_text("image_hash", image_hash)
        distance = as_whole("distance", distance, 0)
        found = [(_distance(entry.perceptual_hash, image_hash), entry) for entry in self.entries()]
        return sorted((pair for pair in found if pair[0] <= distance), key=lambda pair: pair[0])

    def _select(self, condition: str, *values: str) -> list[Entry]:
        with self._open() as connection:
            return self._rows(connection, condition, *values)

    def _of(self, id: str) -> tuple[str, str]:
        return "WHERE ltrim(id, '0') = ? ORDER BY time", _normal(id).lstrip("0")

    def _rows(self, connection: sqlite3.Connection, condition: str, *values: str) -> list[Entry]:
        rows = connection.execute(f"SELECT {COLUMNS} FROM entries {condition}", values).fetchall()
        for row in rows:
            when, texts = row[1], (row[0], *row[2:])
            if not isinstance(when, (int, float)) or not 0 <= when < LATEST or not all(map(_is_text, texts)):
                raise RegistryError(f"registry {self.path}: damaged (an entry of another kind); {REMEDY}")
        return [Entry(*row) for row in rows]

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            with self._connected("rw" if write else "ro") as connection:
                yield connection
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise _explained(self.path, error) from None

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are committed when the block ends well."""
        if mode == "ro" and _has_journal(self.path):
            # Of a commit that goes on, or of one that was cut short; the first reader that may write takes it back.
            with self._connected("rw") as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
        try:
            yield connection
            if connection.in_transaction:
                connection.execute("COMMIT")
        finally:
            connection.close()  # without a commit, all is taken back


def _explained(path: Path, error: Exception) -> RegistryError:
    """The error with its remedy."""
    text = str(error)
    if "locked" in text:
        return RegistryError(f"registry {path}: another process is writing; try again")
    if "readonly" in text or "unable to open" in text:
        return RegistryError(f"registry {path}: cannot be written ({error}); check its and its folder's permissions")
    if "disk" in text and "malformed" not in text:
        return RegistryError(f"registry {path}: the disk is full or fails ({error}); nothing was changed")
    return RegistryError(f"registry {path}: damaged ({error}); {REMEDY}")


def _journal(path: Path) -> str:
    """SQLite's journal: of the file itself, also where the path is a link."""
    return f"{os.path.realpath(path)}-journal"


def _has_journal(path: Path) -> bool:
    """Whether a commit goes on, or was cut short."""
    try:
        return os.stat(_journal(path)).st_size > 0
    except OSError:  # none, or a name too long for one; in one call: another process may end its commit at any time
        return False


def perceptual_hash(image: Tensor) -> str:
    """A hash of 64 bits, robust to scaling, compression and brightness: signs of horizontal differences.

    Args:
        image: (3, H, W) in [0, 1].

    Returns:
        16 hexadecimal digits (the "dHash" of N. Krawetz, 2013); similar images differ in few bits.

    Raises:
        ValueError: What `as_rgb` refuses.
    """
    small = F.interpolate(as_rgb(image)[None], size=(HASH_SIDE, HASH_SIDE + 1), mode="bilinear", antialias=True)
    small = luminance(small.cpu())[0, 0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{HASH_SIDE**2 // 4}x}"


def copied(entries: list[Entry], seen: Thumbnail | None) -> bool | None:
    """Whether a watermark was probably copied into an image from the one that was registered for it.

    Args:
        entries: Of the watermark's id.
        seen: Of the image in which it was read.

    Returns:
        Whether the image looks like none of the registered ones; None where that cannot be told.
    """
    if seen is None:
        return None
    registered = [one for entry in entries if (one := Thumbnail.parse(entry.thumbnail)) is not None]
    likest = max((value for one in registered if (value := likeness(one, seen)) is not None), default=None)
    return None if likest is None else likest < LIKE


def _distance(one: str, other: str) -> int:
    """Bits in which two perceptual hashes differ; one more than there are where one is missing."""
    if not (HASH.fullmatch(one) and HASH.fullmatch(other)):
        return HASH_SIDE**2 + 1
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _others(entries: list[Entry], image_hash: str) -> bool:
    return any(_distance(entry.perceptual_hash, image_hash) > SIMILAR for entry in entries)


def _check_text(name: str, text: object) -> None:
    check_type(name, text, str, error=RegistryError)
    assert isinstance(text, str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RegistryError(f"{name} {excerpt(text)}: has characters that are no Unicode; leave them out") from None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _now() -> float:
    return time.time()


def _normal(id: str) -> str:
    _check_text("id", id)
    digits = id.strip().lower().removeprefix("0x")
    if not digits or not set(digits) <= set("0123456789abcdef"):
        raise RegistryError(f"id {excerpt(id)}: not hexadecimal; use the digits 0-9 and a-f")
    return digits
