"""Secret keys, and the random streams derived from them.

A key is 32 random bytes. Carriers, whitening and the message check are derived from
``SHAKE-256(len(key) | key | len(label) | label)`` (FIPS 202), lengths as four big-endian bytes: identical on every
machine, and the streams of different labels are independent. This is part of wire format 1.

A key file is one line of text, ``onrw-key-1:`` and 72 hexadecimal digits: the key and four bytes of SHA-256 of it, so
that a mistyped key raises an error. The key itself never appears in messages or logs.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import as_path, as_whole, check_type
from ..imaging.atomic import atomic_write

__all__ = ["ENVIRONMENT", "Key", "KeyFileError", "check_key", "excerpt", "hidden_keys", "redacted"]

ENVIRONMENT = "ONRW_KEY"
PREFIX = "onrw-key-1:"
SECRET_BYTES = 32
CHECKSUM_BYTES = 4
OTHERS = stat.S_IRWXG | stat.S_IRWXO
LONGEST_FILE = 4096  # bytes read at most of a key file
REMEDY = "make one with `onrw key new -o FILE`"
# What precedes a text in another encoding than plain UTF-8: Windows editors and PowerShell's `>` write these.
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
DIGITS = 2 * (SECRET_BYTES + CHECKSUM_BYTES)  # of a key that `new` drew
# The text of a key, or its digits alone, also cut short: the last of them are a checksum. A row of as many raw bits is
# none, nor are the 64 digits of a SHA-256.
SECRET_TEXT = re.compile(
    rf"{PREFIX}(?!\(hidden\))\S+|(?<![0-9a-f])(?![01]+(?![0-9a-f]))[0-9a-f]{{{2 * SECRET_BYTES + 1},}}", re.IGNORECASE
)
HIDDEN = f"{PREFIX}(hidden)"
EXCERPT = 40  # characters

logger = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """A key that is missing, malformed or cannot be written.

    Attributes:
        reason: What is wrong.
        remedy: How a new key is made on the command line, where that is the remedy; None elsewhere.
    """

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        reason = redacted(reason)  # the name of a source may be a key
        super().__init__(reason if remedy is None else f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


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
            raise KeyFileError("key: 16 to 64 bytes are needed", REMEDY)

    @classmethod
    def new(cls) -> Key:
        """A new key, drawn by the operating system."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str, source: str = "key") -> Key:
        """The key written in one line of text.

        Args:
            text: ``onrw-key-1:<hex>``, surrounding white space and a byte order mark allowed.
            source: Name of the text in error messages.

        Raises:
            KeyFileError: If the text is not a key. The message never repeats it.
        """
        check_type(source, text, str, error=KeyFileError)
        text = text.removeprefix("\ufeff").strip()
        if not text:
            raise KeyFileError(f"{source}: empty, so no key", f"delete it and {REMEDY}")
        if not text.startswith(PREFIX):
            raise KeyFileError(
                f"{source}: not an ONRW key (a line of {PREFIX} and {DIGITS} hexadecimal digits)", REMEDY
            )
        digits = text[len(PREFIX) :]
        if not re.fullmatch(r"[0-9a-fA-F]{40,136}", digits) or len(digits) % 2:
            raise KeyFileError(
                f"{source}: damaged key (cut short, too long, or not hexadecimal); restore it from a copy"
            )
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
        path = _checked(path)
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = _decoded(file.read(LONGEST_FILE))
        except OSError as error:
            raise KeyFileError(f"key file {path}: {error.strerror or error}", REMEDY) from None
        key = cls.parse(text, f"key file {path}")
        if os.name == "posix" and mode & OTHERS:
            logger.warning("key file %s is open to other users of this machine; run `chmod 600 %s`", path, path)
        return key

    @classmethod
    def load_or_new(cls, path: str | os.PathLike[str]) -> Key:
        """The key in a file, a new one where there is no such file. Processes that call it together get one key.

        Raises:
            KeyFileError: See `load` and `save`.
        """
        path = _checked(path)
        if not path.exists():
            try:
                cls.new().save(path)
            except KeyFileError:
                if not path.exists():  # otherwise another process was first
                    raise
        return cls.load(path)

    @classmethod
    def from_environment(cls, variable: str = ENVIRONMENT) -> Key:
        """The key whose text an environment variable holds.

        Raises:
            KeyFileError: If the variable is not set or holds no key.
        """
        check_type("variable", variable, str, error=KeyFileError)
        text = os.environ.get(variable)
        if text is None:
            raise KeyFileError(f"no key: the environment variable {variable} is not set", REMEDY)
        return cls.parse(text, f"environment variable {variable}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a key file that only its owner can read. Never overwrites: a lost key cannot be made again.

        Raises:
            KeyFileError: If the file exists or cannot be written.
        """
        path = _checked(path)
        try:
            with atomic_write(path, overwrite=False) as file:
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), 0o600)  # before there is anything to be read in it
                file.write(f"{self.text()}\n".encode("ascii"))
        except FileExistsError:
            raise KeyFileError(f"key file {path}: exists already, and keys are never overwritten") from None
        except OSError as error:
            raise KeyFileError(f"key file {path}: cannot be written ({error.strerror or error})") from None

    def text(self) -> str:
        """The text of a key file. Everyone who has it can read, forge and remove the watermarks."""
        return PREFIX + (self.secret + _checksum(self.secret)).hex()

    def stream(self, label: str, n: int) -> bytes:
        """The first `n` bytes of this key's random stream named `label`."""
        check_type("label", label, str)
        n = as_whole("n", n, 0)
        name = label.encode("utf-8")
        parts = len(self.secret).to_bytes(4, "big") + self.secret + len(name).to_bytes(4, "big") + name
        return hashlib.shake_256(parts).digest(n)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the key without revealing it."""
        return self.stream("fingerprint", 8).hex()


@contextmanager
def hidden_keys() -> Iterator[None]:
    """Hides every key in the message of an error that leaves the block: it may repeat an argument."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        if redacted(text) == text:
            raise
        if isinstance(error, OSError):  # its text is made of its attributes
            raise OSError(redacted(text)) from None
        error.args = (redacted(text),)
        raise error from None


def check_key(key: object) -> None:
    """Refuse what is no key, such as the name of its file.

    Raises:
        ValueError: See above.
    """
    check_type("key", key, Key, "load it with Key.load(FILE)")


def redacted(text: str) -> str:
    """A text with every key in it hidden."""
    check_type("text", text, str)
    return SECRET_TEXT.sub(HIDDEN, text)


def excerpt(text: str) -> str:
    """The beginning of a text in quotes, for errors, with every key in it hidden: before it is cut, not after."""
    text = redacted(text)
    return repr(text if len(text) <= EXCERPT else text[:EXCERPT] + "...")


def _checked(path: str | os.PathLike[str]) -> Path:
    """The path of a key file; the text of a key is refused, and not shown."""
    checked = as_path("key file", path, KeyFileError)
    if SECRET_TEXT.search(os.fspath(path)):
        raise KeyFileError(
            "key file: the text of a key was given in place of a file's name; save it in a file, or put it into the "
            f"environment variable {ENVIRONMENT}"
        )
    return checked


def _decoded(content: bytes) -> str:
    """The text in a file, in UTF-8 or in what its byte order mark says."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors="replace")
    return content.decode("utf-8", errors="replace")


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(b"onrw key checksum" + secret).digest()[:CHECKSUM_BYTES]
