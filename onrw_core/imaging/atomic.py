"""Atomic writing of files."""

from __future__ import annotations

import errno
import filecmp
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

from .regular import open_regular

try:
    import fcntl
except ImportError:  # Windows, where open files cannot be removed
    fcntl = None  # type: ignore[assignment]  # mypy has no optional modules

__all__ = ["Undo", "are_one_file", "atomic_write", "check_writable", "is_temporary", "remove_abandoned"]

PREFIX, SUFFIX = ".onrw-", ".tmp"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of file systems without them

Undo: TypeAlias = Callable[[], None] | None


@contextmanager
def atomic_write(
    path: str | os.PathLike, *, overwrite: bool = True, commit: Callable[[Path], Undo] = lambda written: None
) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` that replaces it, on the disk, when the block ends without an error.

    An error or Ctrl-C inside the block leaves `path` unchanged and removes the temporary file; of a killed process, the
    next `atomic_write` to the same folder does. Of a symbolic link, the target is replaced.

    Args:
        path: The file.
        overwrite: Whether a file that exists at the end of the block may be replaced.
        commit: Called with the complete file on the disk, before it gets the name `path`. If it raises, nothing is
            written. It may return what takes its work back, which is called if the file does not get its name after
            all.

    Raises:
        FileExistsError: `path` exists and must not be replaced, or is not a regular file.
        OSError: The folder does not exist, or is not writable.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is not a regular file", str(path))
    # Not tempfile: its files are private (0600), an image should have the permissions of any new file. The name is
    # short, so that `path` may have the longest name of the file system.
    temporary = path.with_name(f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}")
    undo: Undo = None
    remove_abandoned(path.parent)
    try:
        with _create(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not overwrite and path.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(path))
            undo = commit(temporary)
            if fcntl is not None:
                _rename(temporary, path, overwrite)  # while it is locked
        if fcntl is None:
            _rename(temporary, path, overwrite)  # Windows renames no open file
    except BaseException:
        missing = undo is not None and not _is_there(path, temporary)
        temporary.unlink(missing_ok=True)
        if missing and undo is not None:
            undo()
        raise
    _sync_folder(path.parent)


def _create(temporary: Path) -> BinaryIO:
    """A new file, which no `remove_abandoned` removes as long as it is open."""
    while True:
        file = open(temporary, "xb")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks, where nothing is removed
                fcntl.flock(file, fcntl.LOCK_EX)
            if not temporary.exists():  # it was taken for abandoned before it was locked
                file.close()
                continue
        return file


def _is_there(path: Path, temporary: Path) -> bool:
    """Whether the content of a temporary file has its name: by an error after that, or from another process."""
    with suppress(OSError):
        return not temporary.exists() or filecmp.cmp(path, temporary, shallow=False)
    return False


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
    elif os.name == "nt":
        os.rename(temporary, path)  # on Windows it fails if the name exists
    else:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # reserves the name
            os.replace(temporary, path)
        else:
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    """Write the new name to the disk, if the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Make a file in a folder and remove it: permissions do not tell of read-only and special file systems.

    Raises:
        OSError: No file can be made there.
    """
    probe = folder / f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}"
    with _create(probe):
        pass
    probe.unlink(missing_ok=True)  # once closed, another process may take it for abandoned


def are_one_file(folder: Path, one: str, other: str) -> bool:
    """Whether two names mean one file in a folder, as names that differ in case do on Windows and macOS.

    Raises:
        OSError: No file can be made there.
    """
    probe, same = (folder / f"{PREFIX}{name}{SUFFIX}" for name in (one, other))
    with _create(probe):
        found = same.exists()
    probe.unlink(missing_ok=True)
    return found


def is_temporary(path: Path) -> bool:
    """Whether a file is an unfinished file of `atomic_write`."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


def remove_abandoned(folder: Path) -> None:
    """Remove unfinished files of killed processes in a folder, but not files that are being written."""
    found: list[Path] = []
    with suppress(OSError):  # a folder that is missing, or cannot be listed
        found = [folder / name for name in os.listdir(folder) if is_temporary(Path(name))]
    for file in found:
        with suppress(OSError, ValueError):  # of another user, being written, or no regular file
            if fcntl is None:
                file.unlink()
                continue
            with open_regular(file) as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
