"""The place in ComfyUI's output folder where a node saves files."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..onrw_core.imaging.atomic import check_writable

__all__ = ["Place"]

BATCH_NUMBER = "%batch_num%"


@dataclass(frozen=True)
class Place:
    """Names of the files of a batch.

    Attributes:
        folder: The folder, which exists.
        name: Of the files, without number and suffix; `BATCH_NUMBER` in it stands for the number of the image.
        counter: The number of the first file.
        subfolder: The folder, relative to the output folder.
        suffix: Of the files.
    """

    folder: Path
    name: str
    counter: int
    subfolder: str
    suffix: str

    @classmethod
    def of(cls, prefix: str, suffix: str, count: int, width: int = 0, height: int = 0) -> Place:
        """The place for `count` files, which do not exist.

        Args:
            prefix: The widget filename_prefix.
            suffix: Of the files.
            count: Number of files.
            width, height: Of the images, for the prefix.

        Raises:
            ValueError: No file can be written there.
        """
        output = folder_paths.get_output_directory()
        try:
            folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output, width, height)
            place = cls(Path(folder), name, counter, subfolder, suffix)
            with suppress(FileNotFoundError):
                os.lstat(place.path(count - 1))
            check_writable(place.folder)
        except OSError as error:  # its own text has the path on the server
            raise ValueError(f"filename_prefix: cannot be used ({error.strerror}); choose another") from None
        except Exception:  # ComfyUI's own, or NUL in the name
            raise ValueError("filename_prefix: is no name inside ComfyUI's output folder; choose another") from None
        # ComfyUI counts the files of the name before `BATCH_NUMBER` is replaced.
        while any(place.path(index).exists() for index in range(count)):
            place = place.later()
        return place

    def path(self, index: int) -> Path:
        """The file of image number `index`."""
        name = self.name.replace(BATCH_NUMBER, str(index))
        return self.folder / f"{name}_{self.counter + index:05}_{self.suffix}"

    def later(self) -> Place:
        """The place with all numbers raised by one."""
        return Place(self.folder, self.name, self.counter + 1, self.subfolder, self.suffix)
