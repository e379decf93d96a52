"""ONRW_SaveImage: marks images and saves them, in place of ComfyUI's Save Image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..onrw_core.extractors.reading import Reading
from ..onrw_core.imaging import files
from ..onrw_core.imaging.atomic import Undo
from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.metadata import writing
from ..onrw_core.imaging.pixels import MIN_SIDE
from ..onrw_core.payload.keys import Key
from ..onrw_core.payload.message import Message
from ..onrw_core.payload.registry import Registry, perceptual_hash
from .adapter import Progress, clean, numbered, ordinary_tensors
from .card import shown
from .images import areas, from_comfy, to_comfy
from .inputs import generator_for, key, marking_settings, strength
from .keys import PLACE, reader_of
from .marking import (
    REMEDY,
    Marker,
    MarkingNode,
    Models,
    ids_of,
    labelled,
    marked_card,
    message_of,
    public_label,
    speed,
    text,
    unchanged_card,
    working_size,
)
from .places import Place
from .reading import read
from .schemas import advanced, schema
from .sockets import CATEGORY, Reader
from .warning import warn, warn_already_marked, warn_unreadable

__all__ = ["REGISTRY", "SaveImageNode", "registry"]

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}
REGISTRY = Path("__onrw_registry") / "ids.db"  # in the user folder; not served, like the keys
DROPPED = "the workflow is not in the file, because it is longer than the 64 KB that JPEG holds; choose PNG or WebP"
MODEL_TAG = 0x0110  # Exif tag in which ComfyUI keeps the prompt; the workflow is in the one below


class SaveImageNode(MarkingNode):
    """Marks every image of a batch, and saves it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_SaveImage",
            display_name="Save Image (Invisible Watermark)",
            search_aliases=["invisible watermark", "save image", "sign image", "provenance", "copyright"],
            category=CATEGORY,
            description="Marks images invisibly and saves them, in place of Save Image: connect an image, nothing else "
            "is needed.",
            inputs=[
                io.Image.Input("images", tooltip="The images to mark and save, at any size."),
                text(),
                *strength(),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="PNG",
                    tooltip="File format. PNG keeps all pixels; JPEG and WebP are smaller.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="ComfyUI",
                    tooltip="Prefix of the file names, with %date:yyyy-MM-dd% and the like as in Save Image.",
                ),
                speed(),
                public_label(),
                advanced(
                    io.Int.Input,
                    "file_quality",
                    default=files.JPEG_QUALITY,
                    min=50,
                    max=100,
                    tooltip="Compression of JPEG and WebP; WebP is lossless at 100.",
                ),
                advanced(
                    io.String.Input,
                    "note",
                    default="",
                    tooltip="A note about the images, such as for whom they are, kept on this machine under the id of "
                    "each image (leave `text` empty). Read Watermark shows it.",
                ),
                working_size(),
                key(),
            ],
            outputs=[io.Image.Output("marked", "marked", tooltip="The marked images, before compression.")],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        images: Tensor,
        text: str,
        strength: str,
        quality: float,
        format: str,
        filename_prefix: str,
        preset: str,
        public_label: str,
        file_quality: int,
        note: str,
        size: int,
        key: Key | None = None,
    ) -> io.NodeOutput:
        if note and text.strip():
            raise ValueError("note: it is kept under the id of an image, and a text has none; leave `text` empty")
        reader, models = reader_of(None, key), Models.embedded()
        settings = marking_settings(preset, reader.extractor, strength=strength, quality=quality)
        settings = labelled(settings, public_label)
        originals, allowed = from_comfy(images, min_side=MIN_SIDE), areas(None, images)
        metadata, dropped = _metadata(cls, format)
        sources = []
        for index, original in enumerate(originals):
            alpha = clean(images[index, ..., 3])[None].float().clamp(0, 1) if images.shape[-1] == 4 else None
            sources.append(files.DecodedImage(original, alpha, metadata))
            files.check_holds(f"{numbered('image', index, len(images))}{FORMATS[format]}", sources[-1])
        place = Place.of(filename_prefix, FORMATS[format], len(images), images.shape[2], images.shape[1])
        marker = Marker(models, reader, settings, size, Progress(len(originals) * settings.iterations), cls)
        marked, cards, saved, unreadable, unchanged = [], [], [], [], []
        for index, original in enumerate(originals):
            ids = registry(create=True) if note else None
            message = message_of(text, original, reader) if ids is None else _free_id(ids, original, reader)
            done = marker.mark(original, message, allowed[index], generator_for(0))
            if done is None:
                ids = None  # the image keeps the id that it has
            image = (original if done is None else done.image).cpu()
            path = place.path(index)
            content = files.encode(path, image, sources[index], quality=file_quality)
            written = files.load(path, content).rgb
            found = read(reader, written, None if done is None else message)
            register = partial(_register, ids, message, content, written, found.reading, note)
            place = _write(place, index, content, register)
            marked.append(image)
            saved.append({"filename": place.path(index).name, "subfolder": place.subfolder, "type": "output"})
            where = f"Key: {PLACE} (keep a copy)." if key is None else f"Key: {reader.key.fingerprint}."
            if done is None:
                unchanged.append(index)
                lines = ("The note is not kept: it belongs to a new id.", where) if note else (where,)
                cards.append(unchanged_card(found, size_of(written), *lines))
                continue
            if not found.reading.carries(message):
                unreadable.append(index)
            cards.append(marked_card(done, message, found, where))
        warn_already_marked(cls, unchanged, len(originals))
        warn_unreadable(cls, unreadable, len(originals), REMEDY, on_node=False)
        if dropped:
            warn(cls, DROPPED, on_node=False)
            sentence = f"{DROPPED[0].upper()}{DROPPED[1:]}."
            cards = [card | {"state": "warning", "lines": [*card["lines"], sentence]} for card in cards]
        return io.NodeOutput(to_comfy(torch.stack(marked), images), ui=shown(cards, images=saved))


def _write(place: Place, index: int, content: bytes, register: Callable[[], Undo]) -> Place:
    """Write the file of image number `index`; returns the place, with later numbers if another file has its name."""
    while True:
        path = place.path(index)
        try:
            if not path.exists():
                files.write(path, content, register, overwrite=False)
                return place
        except files.ImageError:
            if not path.exists():
                raise
        place = place.later()


def registry(create: bool = False) -> Registry | None:
    """The registry of this installation; None where there is none.

    Args:
        create: Make one where there is none.

    Raises:
        RegistryError: If it is damaged or cannot be written.
    """
    path = Path(folder_paths.get_user_directory()) / REGISTRY
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Registry.create(path)
    return Registry(path) if path.is_file() else None


def _free_id(ids: Registry, image: Tensor, reader: Reader) -> Message:
    """The first id of an image that no other image in the registry has."""
    look = perceptual_hash(image)
    free = (message for message in ids_of(image, reader) if not ids.has_another(message.value, look))
    message = next(free, None)
    if message is None:
        raise ValueError("note: all ids of this image are taken in the registry; use another key")
    return message


def _register(
    ids: Registry | None, message: Message, content: bytes, image: Tensor, reading: Reading, note: str
) -> Undo:
    if ids is None:
        return None
    return ids.add_for_result(
        message.value,
        file_hash=hashlib.sha256(content).hexdigest(),
        perceptual_hash=perceptual_hash(image),
        thumbnail=str(reading.thumbnail(image) or ""),
        note=note,
        own=True,
    )


def _metadata(node: type[io.ComfyNode], format: str) -> tuple[dict[str, Any], bool]:
    """Prompt and workflow where ComfyUI looks for them, in PNG as text, elsewhere in Exif; and whether they are dropped
    because they are too long.
    """
    if args.disable_metadata or node.hidden is None:
        return {}, False
    texts = {"prompt": node.hidden.prompt, **(node.hidden.extra_pnginfo or {})}
    found = {name: json.dumps(value) for name, value in texts.items() if value is not None}
    if format == "PNG":
        chunks = [(b"tEXt", f"{name}\0{value}".encode("latin-1", "replace")) for name, value in found.items()]
        return {"chunks": chunks}, False
    exif = Image.Exif()
    for number, (name, value) in enumerate(found.items()):
        exif[MODEL_TAG - number] = f"{name}:{value}"
    metadata = {"exif": exif.tobytes()} if found else {}
    _, lost = writing(format.upper(), metadata)
    return ({}, True) if lost else (metadata, False)
