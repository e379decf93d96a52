"""The journal of a folder, by which a stopped run is continued; reading and writing in parallel to the optimisation.

The journal is a file of JSON lines in the folder of the results. One kind of line names the options of a run, the other
is the record of a marked photo:

    {"settings": NAME, "options": {...}}
    {"output": FILE NAME, "output_sha256": ..., "source_sha256": ..., "settings": NAME, "id": ...}

File names are relative to the journal's folder. "readable": false is added if the watermark could not be
read back; such a photo is marked again. A line is appended when a result is on the disk but does not have its name yet
(`images.write`): so every visible result has its line, whenever a run is stopped. Secrets among the options are
recorded as keyed digests only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from ..imaging import files as images
from ..imaging.regular import open_regular
from ..payload.keys import Key
from .folders import JOURNAL
from .threads import side_thread

__all__ = ["JOURNAL", "Job", "Journal", "attempt", "finish_all", "keyed", "local"]

AHEAD = 1  # photos decoded beyond the one that is optimised, and encoded behind it
KEYED = "keyed:"
NAME_DIGITS = 16
OPTION = (str, int, float, NoneType)

Job = tuple[Path, Path]  # the photo, and the file that it becomes when it is marked
Outcome = Any  # what came of a job: a result, an exception, or None where it was done before
T = TypeVar("T")


def keyed(key: Key | None, label: str, value: str) -> str:
    """A digest of a value that reveals nothing without the key.

    Without a key it is a plain digest: what is marked without one, anybody can read anyway.
    """
    if key is None:
        digest = hashlib.sha256(json.dumps([label, value]).encode()).hexdigest()
    else:
        digest = key.stream(f"journal {label} {value}", NAME_DIGITS // 2).hex()
    return KEYED + digest[:NAME_DIGITS]


@dataclass(frozen=True)
class Entry:
    """The record of a marked photo.

    Attributes:
        output, source: Digests (SHA-256) of the marked file and of its photo.
        settings: Name of the options.
        readable: Whether the watermark was read back.
        id: Stands for the photo's own id, see `messages`; None where it was given another message.
    """

    output: str
    source: str
    settings: str
    readable: bool = True
    id: str | None = None


class Journal:
    """The journal of a folder of results.

    Args:
        folder: Where the results lie; it need not exist yet.
        options: What this run is asked for, by the names of the command's options; secrets as `keyed` has them. None
            is the same as none, so that an option that is new does not set folders of earlier versions apart.

    Raises:
        ValueError: If there is a journal that cannot be read, or that is a pipe or a device.
    """

    def __init__(self, folder: Path, options: Mapping[str, str | float | None]) -> None:
        self.path = folder / JOURNAL
        self.options = {name: value for name, value in options.items() if value is not None}
        self.settings = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]
        self.runs: dict[str, dict] = {}
        self.entries: dict[str, Entry] = {}
        content = b""
        if os.path.exists(self.path):  # not `Path.exists`, which raises an error of a name that is too long
            with open_regular(self.path) as file:
                content = file.read()
        self._torn = not content.endswith(b"\n") and content != b""  # the machine went down within a line
        for line in content.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        """Understand a line, or leave it out: of a torn or damaged one the photo is marked again."""
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: of deeply nested JSON
            return
        if not isinstance(fields, dict):
            return
        settings, options = fields.get("settings"), fields.get("options")
        if isinstance(options, dict):
            if isinstance(settings, str) and all(isinstance(value, OPTION) for value in options.values()):
                self.runs[settings] = options
            return
        output, digest, source = (fields.get(name) for name in ("output", "output_sha256", "source_sha256"))
        if isinstance(output, str) and all(isinstance(value, str) for value in (digest, source, settings)):
            readable, id = fields.get("readable") is not False, fields.get("id")
            known = id if isinstance(id, str) else None
            self.entries[output] = Entry(str(digest), str(source), str(settings), readable, known)

    def holds(self, result: Path) -> bool:
        """Whether a result lies in the journal's folder or below it."""
        return self.path.parent in result.parents

    def entry(self, result: Path) -> Entry | None:
        """What is noted of a result."""
        return self.entries.get(self._name(result)) if self.holds(result) else None

    def _name(self, result: Path) -> str:
        return result.relative_to(self.path.parent).as_posix()

    def expects(self, result: Path) -> bool:
        """Whether a result is noted with this run's options.

        Raises:
            ValueError: If it is noted with others; the message names them.
        """
        entry = self.entry(result)
        if entry is None or entry.settings == self.settings:
            return entry is not None
        before = self.runs.get(entry.settings, {})
        changes = []
        for name in {**self.options, **before}:
            was, now = before.get(name), self.options.get(name)
            if was != now:
                secret = KEYED in f"{was} {now}"
                was, now = ("not given" if value is None else value for value in (was, now))
                changes.append(name if secret else f"{name} (was {was}, now {now})")
        raise ValueError(
            f"output {result}: was marked with other settings: {', '.join(changes)}; give those to go on with the "
            "folder, --overwrite to mark it again, or another folder"
        )

    def done(self, job: Job, content: bytes, overwrite: bool) -> bool:
        """Whether a photo is marked already: with these options, itself and the result unchanged since.

        Args:
            job: The photo and its result.
            content: The photo's file.
            overwrite: Whether what has changed is to be marked again.

        Raises:
            ValueError: If something has changed, and is not.
        """
        source, result = job
        entry = self.entry(result)
        if entry is None or entry.settings != self.settings or not entry.readable or not result.exists():
            return False
        digest = hashlib.sha256(content).hexdigest()
        if source.samefile(result):
            unchanged = digest == entry.output  # marked in its place
        else:
            unchanged = digest == entry.source and _digest(result) == entry.output
        if unchanged or overwrite:
            return unchanged
        changed = result if digest == entry.source else source
        raise ValueError(f"{source}: {changed} has changed since it was marked; give --overwrite to mark it again")

    def replaces(self, result: Path) -> bool:
        """Whether a result may be replaced unasked: this journal's own, whose mark could not be read."""
        entry = self.entry(result)
        return entry is not None and not entry.readable and result.exists() and _digest(result) == entry.output

    def note(
        self, result: Path, output: bytes, source_digest: str, *, readable: bool = True, id: str | None = None
    ) -> None:
        """Append that a photo is marked, onto the disk; `readable` and `id` are those of `Entry`.

        Raises:
            OSError: If the journal cannot be written.
        """
        lines: list[dict[str, Any]] = []
        if self.settings not in self.runs:
            lines.append({"settings": self.settings, "options": self.options})
        entry = Entry(hashlib.sha256(output).hexdigest(), source_digest, self.settings, readable, id)
        digests = {"output_sha256": entry.output, "source_sha256": entry.source}
        line = {"output": self._name(result)} | digests | {"settings": entry.settings}
        lines.append(line | ({} if readable else {"readable": False}) | ({} if id is None else {"id": id}))
        text = "\n" * self._torn + "".join(json.dumps(line) + "\n" for line in lines)
        self._torn = True  # until all of it is there
        with open(self.path, "ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._torn, self.runs[self.settings], self.entries[self._name(result)] = False, self.options, entry


def local(jobs: Iterable[Job], read: Callable[[Job], T | None], work: Callable[[T], Outcome]) -> Iterator[tuple]:
    """Do the jobs one after the other, while a thread reads ahead.

    Args:
        jobs: In the order in which they come back.
        read: Done in the thread; None where there is nothing to be done.
        work: Done here, with what `read` returned.

    Yields:
        (job, outcome).
    """
    with closing(_ahead(((job, job) for job in jobs), read)) as reads:
        for job, item in reads:
            yield job, attempt(work, item)


def finish_all(outcomes: Iterator[tuple[Job, Outcome]], finish: Callable[[Job, Outcome], None]) -> None:
    """Call `finish` with each job and its outcome, in a thread, while the next ones are worked on.

    What is under way is finished even if an exception or Ctrl-C ends `outcomes`.
    """
    with closing(_ahead(((job, (job, outcome)) for job, outcome in outcomes), lambda pair: finish(*pair))) as finished:
        for _, error in finished:
            if error is not None:
                raise error


def attempt(function: Callable[[Any], Outcome], item: Outcome) -> Outcome:
    """`function(item)`, or the exception that it raised; exceptions and None are passed on."""
    if item is None or isinstance(item, Exception):
        return item
    try:
        return function(item)
    except Exception as error:
        return error


def _ahead(
    pairs: Iterable[tuple[Job, Any]], function: Callable[[Any], Outcome]
) -> Generator[tuple[Job, Outcome], None, None]:
    """(job, `attempt(function, item)`) for each (job, item), done in one thread that runs `AHEAD` of the consumer."""
    waiting: deque[tuple[Job, Future]] = deque()
    with side_thread() as thread:
        for job, item in pairs:
            waiting.append((job, thread.submit(attempt, function, item)))
            if len(waiting) > AHEAD:
                job, future = waiting.popleft()
                yield job, future.result()
        for job, future in waiting:
            yield job, future.result()


def _digest(path: Path) -> str:
    return hashlib.sha256(images.read(path)).hexdigest()
