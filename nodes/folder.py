"""ONRW_LoadFolder, and the sample images that templates use."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..onrw_core.commands.folders import sentences, why_left_out
from ..onrw_core.imaging import files
from .adapter import ordinary_tensors
from .images import to_comfy
from .schemas import schema
from .sockets import CATEGORY
from .warning import warn

__all__ = ["LoadFolderNode", "provide_samples"]

SAMPLES = Path(__file__).parents[1] / "onrw_core" / "samples"
CLIP = ".mp4"  # suffix of the sample that is a video
PREFIX = "onrw_"  # of the samples in ComfyUI's input folder


class LoadFolderNode(io.ComfyNode):
    """Loads the images of a folder, each at its own size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_LoadFolder",
            display_name="Load Folder (Images to Watermark)",
            search_aliases=["load images", "batch", "folder"],
            category=CATEGORY,
            description="Loads all images of a folder inside ComfyUI's input folder, one after the other.",
            inputs=[
                io.String.Input(
                    "folder", default="", tooltip="A folder inside ComfyUI's input folder. Empty: the input folder."
                ),
                io.String.Input(
                    "pattern", default="*", tooltip="Which files, such as *.jpg; other files than images are left out."
                ),
            ],
            outputs=[
                io.Image.Output("images", "images", is_output_list=True, tooltip="The images, one by one."),
                io.String.Output("names", "names", is_output_list=True, tooltip="Their file names without suffix."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, pattern: str | None) -> str:
        if folder is None or pattern is None:
            return ""  # linked: not known yet
        images, _ = _images(folder, pattern)
        return str([(path.name, path.stat().st_mtime_ns) for path in images])

    @classmethod
    @ordinary_tensors
    def execute(cls, folder: str, pattern: str) -> io.NodeOutput:
        paths, left_out = _images(folder, pattern)
        images, names, refused = [], [], []
        for path in paths:
            try:
                images.append(_image(files.load(path)))
                names.append(path.stem)
            except files.ImageError as error:
                refused.append(f"{path.name}{str(error).removeprefix(str(path))}")
        told = "; ".join([*refused, *sentences(left_out)])
        if not images:
            reason = f" (left out: {told})" if told else ""
            raise ValueError(f"folder: no image {pattern!r} in input/{folder}; put your images there{reason}")
        if told:
            warn(cls, f"left out: {told}")
        return io.NodeOutput(images, names)


def _image(source: files.DecodedImage) -> torch.Tensor:
    """IMAGE of a decoded file, with its alpha."""
    image = to_comfy(source.rgb[None])
    return image if source.alpha is None else torch.cat([image, source.alpha.movedim(0, -1)[None]], -1)


def _images(folder: str, pattern: str) -> tuple[list[Path], dict[str, list[str]]]:
    """The images of a folder inside the input folder, by name; and the names of what else fits the pattern, by reason.

    Raises:
        ValueError: The folder is outside, does not exist or cannot be read; or the pattern is empty.
    """
    base = Path(folder_paths.get_input_directory()).resolve()
    try:
        place = (base / folder).resolve()
    except (OSError, ValueError):  # too long; with NUL
        place = None
    if place is None or not place.is_relative_to(base) or not os.path.isdir(place):
        raise ValueError(f"folder: {folder!r} is no folder inside ComfyUI's input folder; make it, or name another")
    try:
        fitting = sorted(path for path in place.iterdir() if path.match(pattern))
    except ValueError:  # empty, or "."
        raise ValueError(f"pattern: {pattern!r} matches no name; give * for all images") from None
    except OSError as error:
        raise ValueError(f"folder: {folder!r} cannot be read ({error.strerror}); check its permissions") from None
    left_out: dict[str, list[str]] = defaultdict(list)
    images = []
    for path in fitting:
        reason = "folders in it, to load one by one" if os.path.isdir(path) else why_left_out(path)
        if reason:
            left_out[reason].append(path.name)
        else:
            images.append(path)
    return images, left_out


def provide_samples() -> None:
    """Copy the samples of the templates to ComfyUI's input folder, unless they are there."""
    place = Path(folder_paths.get_input_directory())
    for path in SAMPLES.iterdir():
        copy = place / f"{PREFIX}{path.name}"
        if path.suffix in (*files.FORMATS, CLIP) and place.is_dir() and not copy.exists():
            shutil.copyfile(path, copy)
