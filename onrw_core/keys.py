"""The secret key, and every key-derived pattern's source of randomness.

A key is 32 random bytes. All that depends on it (carriers, whitening, the message check) is read from
``SHAKE-256(len(key) | key | len(label) | label)`` (FIPS 202), lengths as four big-endian bytes: the same bytes for ever
on every machine, and nothing about one label's stream follows from another's. This is part of wire format 1.

A key file is one line of text, ``onrw-key-1:`` and 72 hexadecimal digits: the key and four bytes of SHA-256 of it, so
that a mistyped key is an error and not a mark that nobody can read. The key itself never appears in messages or logs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ENVIRONMENT", "Key", "KeyFileError"]

ENVIRONMENT = "ONRW_KEY"
PREFIX = "onrw-key-1:"
SECRET_BYTES = 32
CHECKSUM_BYTES = 4
LONGEST_FILE = 4096  # bytes read at most, whatever file is given as a key
REMEDY = "make one with `onrw key new -o FILE`"

logger = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """A key that is missing, malformed or cannot be written."""


@dataclass(frozen=True)
class Key:
    """A secret key.

    Attributes:
        secret: 16 to 64 bytes; `new` draws 32. Hidden in `repr`.

    Raises:
        KeyFileError: If `secret` has another length.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or not 16 <= len(self.secret) <= 64:
            raise KeyFileError(f"key: 16 to 64 bytes are needed; {REMEDY}")

    @classmethod
    def new(cls) -> Key:
        """A fresh key from the operating system's randomness."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str, source: str = "key") -> Key:
        """The key written in one line of text.

        Args:
            text: ``onrw-key-1:<hex>``, surrounding white space allowed.
            source: What to call the text in an error.

        Raises:
            KeyFileError: If the text is not a key. The message never repeats it.
        """
        text = text.strip()
        if not text:
            raise KeyFileError(f"{source}: empty; {REMEDY}")
        if not text.startswith(PREFIX):
            raise KeyFileError(f"{source}: not an ONRW key (one line that begins with '{PREFIX}'); {REMEDY}")
        digits = text[len(PREFIX) :]
        if not re.fullmatch(r"[0-9a-fA-F]{40,}", digits) or len(digits) % 2:
            raise KeyFileError(f"{source}: damaged key (cut short, or not hexadecimal); restore it from a copy")
        raw = bytes.fromhex(digits)
        secret, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
        if _checksum(secret) != checksum:
            raise KeyFileError(f"{source}: damaged key (its checksum does not fit); restore it from a copy")
        return cls(secret)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Key:
        """Read a key file; a file that other users can read is used, with a warning.

        Raises:
            KeyFileError: If the file is missing, unreadable or not a key.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(LONGEST_FILE).decode("utf-8", errors="replace")
        except OSError as error:
            raise KeyFileError(f"key file {path}: {error.strerror or error}; {REMEDY}") from None
        key = cls.parse(text, f"key file {path}")
        if os.name == "posix" and mode & stat.S_IROTH:
            logger.warning("key file %s can be read by every user of this machine; run `chmod 600 %s`", path, path)
        return key

    @classmethod
    def from_environment(cls, variable: str = ENVIRONMENT) -> Key:
        """The key whose text an environment variable holds.

        Raises:
            KeyFileError: If the variable is not set or holds no key.
        """
        text = os.environ.get(variable)
        if text is None:
            raise KeyFileError(f"no key: the environment variable {variable} is not set; {REMEDY}")
        return cls.parse(text, f"environment variable {variable}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a key file that only its owner can read. Never overwrites: a lost key cannot be made again.

        Raises:
            KeyFileError: If the file exists or cannot be written.
        """
        path = Path(path)
        try:
            # O_EXCL creates and refuses in one step; the one short write leaves no half-written key.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeyFileError(f"key file {path}: exists already, and keys are never overwritten") from None
        except OSError as error:
            raise KeyFileError(f"key file {path}: cannot be written ({error.strerror or error})") from None
        try:
            with open(descriptor, "w", encoding="ascii", newline="\n") as file:
                file.write(self.text() + "\n")
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def text(self) -> str:
        """The line of a key file. Whoever has it can read, forge and remove the marks."""
        return PREFIX + (self.secret + _checksum(self.secret)).hex()

    def stream(self, label: str, n: int) -> bytes:
        """The first `n` bytes of this key's random stream named `label`."""
        name = label.encode("utf-8")
        parts = len(self.secret).to_bytes(4, "big") + self.secret + len(name).to_bytes(4, "big") + name
        return hashlib.shake_256(parts).digest(n)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that tell keys apart and reveal nothing of them."""
        return self.stream("fingerprint", 8).hex()


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(b"onrw key checksum" + secret).digest()[:CHECKSUM_BYTES]
