"""What each photo is marked with: a given message, or an id that is always the same and that no other photo has.

An id of 48 bits has 24 to tell photos apart (see docs/message.md), which are few: among 10,000 photos about three pairs
would share one. So an id that follows from key, seed and file is only the first of a row of candidates. A photo takes
the first candidate that no other photo of its folder has, by the journal, and none in the registry, where there is one.
A video does so too; it has no journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..payload.keys import Key
from ..payload.message import Message, photo_id
from ..payload.registry import Registry
from .journal import Entry, Journal, keyed

__all__ = ["VIDEO", "Messages"]

VIDEO = "video"  # the row of a video's ids, whatever the seed
CANDIDATES = 1000  # of each photo: as many photos would have to want one id


class Messages:
    """Gives the photos or the videos of one run their messages.

    Args:
        given: The message of all of them; None for an id of its own for each.
        key: Key of the ids.
        row: What the candidates follow from, besides key and file: the seed of the run, or `VIDEO`.
        num_bits: Raw bits of the ids.
        journal: Of the folder, where there is one; which ids its photos have is noted there as keyed digests.
        registry: Whose ids are taken as well.

    Raises:
        ValueError: If ids are wanted and there is no key.
    """

    def __init__(
        self,
        given: Message | None,
        key: Key | None,
        row: int | str,
        num_bits: int,
        journal: Journal | None,
        registry: Registry | None,
    ) -> None:
        if given is None and key is None:
            raise ValueError("a message needs a key; give one, or raw bits")
        self._given, self._key, self._row, self._num_bits, self._registry = given, key, row, num_bits, registry
        self._journal = None if journal is None else journal.path
        self._owners: dict[str | None, str] = {}  # name of an id -> digest of the photo that has it
        if given is None and journal is not None:
            for entry in journal.entries.values():
                self._owners[entry.id or self.name(next(self._candidates(entry.source)))] = entry.source

    def take(self, digest: str, image_hash: Callable[[], str]) -> Message:
        """The message of a photo that is about to be marked.

        Args:
            digest: SHA-256 of its file.
            image_hash: Its `perceptual_hash`, computed where the registry knows a candidate: of this photo, marked
                before, or of another one.
        """
        if self._given is not None:
            return self._given
        for message in self._candidates(digest):
            if self._is_free(message, digest, image_hash):
                return message
        raise ValueError(f"all of {CANDIDATES} ids of {self._num_bits} bits are taken; use another folder and registry")

    def _is_free(self, message: Message, digest: str, image_hash: Callable[[], str]) -> bool:
        if self._owners.get(self.name(message), digest) != digest:
            return False
        registry = self._registry
        if registry and registry.lookup(message.value) and registry.has_another(message.value, image_hash()):
            return False
        self._owners[self.name(message)] = digest
        return True

    def noted(self, entry: Entry) -> Message:
        """The message of a photo in the journal."""
        if self._given is not None:
            return self._given
        candidates = self._candidates(entry.source)
        if entry.id is None:  # of an earlier version, which knew no second candidate
            return next(candidates)
        for message in candidates:
            if self.name(message) == entry.id:
                return message
        raise ValueError(
            f"the journal {self._journal} has an id that this key cannot have given; restore it from a copy"
        )

    def name(self, message: Message) -> str | None:
        """What stands for a photo's own id in the journal."""
        return None if self._given is not None else keyed(self._key, "id", message.value)

    def _candidates(self, digest: str) -> Iterator[Message]:
        assert self._key is not None
        for number in range(CANDIDATES):
            photo = f"{self._row} {digest}" + (f" {number}" if number else "")
            yield photo_id(self._key, photo, self._num_bits)
