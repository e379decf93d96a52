"""Marking thousands of photos: what is done is noted and never done again, and disk and optimiser work at one time.

The journal is a file of JSON lines beside the results. One kind of line gives a name to what a run was asked for, the
other says what became of a photo:

    {"settings": NAME, "options": {...}}
    {"output": FILE NAME, "output_sha256": ..., "source_sha256": ..., "settings": NAME}

A line is appended in one write, when a result is on the disk but does not have its name yet (`images.write`): so what
can be seen has its line, whenever a run is stopped. Secrets among the options are there as keyed digests only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import images
from .keys import Key

__all__ = ["JOURNAL", "Job", "Journal", "attempt", "finish_all", "keyed", "local"]

JOURNAL = "onrw-embed.jsonl"
AHEAD = 1  # photos decoded beyond the one that is optimised, and encoded behind it
KEYED = "keyed:"
NAME_DIGITS = 16

Job = tuple[Path, Path]  # the photo, and the file that it becomes when it is marked
Outcome = Any  # what came of a job: a result, an exception, or None where it was done before
T = TypeVar("T")


def keyed(key: Key | None, label: str, value: str) -> str:
    """A digest that tells values apart and can be neither read nor guessed without the key.

    Without a key it is a plain digest: what is marked without one, anybody can read anyway.
    """
    if key is None:
        digest = hashlib.sha256(json.dumps([label, value]).encode()).hexdigest()
    else:
        digest = key.stream(f"journal {label} {value}", NAME_DIGITS // 2).hex()
    return KEYED + digest[:NAME_DIGITS]


@dataclass(frozen=True)
class Entry:
    """A photo that is done: digests (SHA-256) of the marked file and of its photo, and the name of the options."""

    output: str
    source: str
    settings: str


class Journal:
    """What was done in a folder.

    Args:
        folder: Where the results lie; it need not exist yet.
        options: What this run is asked for, by the names of the command's options; secrets as `keyed` has them. None
            is the same as none, so that an option that is new does not set folders of earlier versions apart.

    Raises:
        OSError: If there is a journal that cannot be read.
    """

    def __init__(self, folder: Path, options: Mapping[str, str | float | None]) -> None:
        self.path = folder / JOURNAL
        self.options = {name: value for name, value in options.items() if value is not None}
        self.settings = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]
        self.runs: dict[str, dict] = {}
        self.entries: dict[str, Entry] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        self._torn = not content.endswith(b"\n") and content != b""  # the machine went down within a line
        for line in content.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
            if "options" in fields:
                self.runs[fields["settings"]] = fields["options"]
            else:
                entry = Entry(fields["output_sha256"], fields["source_sha256"], fields["settings"])
                self.entries[fields["output"]] = entry
        except (ValueError, KeyError, TypeError):
            pass  # a torn line; its photo is marked again

    def expects(self, result: Path) -> bool:
        """Whether a result is noted with this run's options.

        Raises:
            ValueError: If it is noted with others; the message names them.
        """
        entry = self.entries.get(result.name)
        if entry is None or entry.settings == self.settings:
            return entry is not None
        before = self.runs.get(entry.settings, {})
        changes = []
        for name in {**self.options, **before}:
            was, now = before.get(name), self.options.get(name)
            if was != now:
                secret = KEYED in f"{was} {now}"
                changes.append(name if secret else f"{name} (was {was or 'not given'}, now {now or 'not given'})")
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
        entry = self.entries.get(result.name)
        if entry is None or entry.settings != self.settings or not result.exists():
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

    def note(self, result: Path, output: bytes, source_digest: str) -> None:
        """Append that a photo is done.

        Raises:
            OSError: If the journal cannot be written.
        """
        lines = []
        if self.settings not in self.runs:
            lines.append({"settings": self.settings, "options": self.options})
        entry = Entry(hashlib.sha256(output).hexdigest(), source_digest, self.settings)
        digests = {"output_sha256": entry.output, "source_sha256": entry.source}
        lines.append({"output": result.name} | digests | {"settings": entry.settings})
        text = "\n" * self._torn + "".join(json.dumps(line) + "\n" for line in lines)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
        self._torn, self.runs[self.settings], self.entries[result.name] = False, self.options, entry


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


def _ahead(pairs: Iterable[tuple[Job, Any]], function: Callable[[Any], Outcome]) -> Iterator[tuple[Job, Outcome]]:
    """(job, `attempt(function, item)`) for each (job, item), done in one thread that runs `AHEAD` of the consumer."""
    waiting: deque[tuple[Job, Future]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for job, item in pairs:
            waiting.append((job, thread.submit(attempt, function, item)))
            if len(waiting) > AHEAD:
                job, future = waiting.popleft()
                yield job, future.result()
        for job, future in waiting:
            yield job, future.result()


def _digest(path: Path) -> str:
    return hashlib.sha256(images.read(path)).hexdigest()
