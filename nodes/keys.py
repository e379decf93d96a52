"""ONRW_Key: the secret key, from a file in ComfyUI's user folder or from the environment. Never a widget's value."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..onrw_core.extractors.loading import NAMES, load_extractor
from ..onrw_core.payload.keys import ENVIRONMENT, Key, KeyFileError, redacted
from .adapter import ordinary_tensors
from .schemas import schema
from .sockets import CATEGORY, KeyType, Reader

__all__ = ["NO_KEY", "PLACE", "KeyNode", "KeyUser", "installation_key", "reader_of"]

FILE, VARIABLE = "file", f"environment ({ENVIRONMENT})"
FOLDER = "__onrw_keys"  # ComfyUI does not serve folders of its user directory that begin with two underscores
DEFAULT = "default"
LONGEST = 200  # bytes of a name
PLACE = f"user/{FOLDER}/{DEFAULT}.key"
"""The key of the installation, relative to ComfyUI's base directory, as users are told."""
NO_KEY = Key(bytes(32))
"""Stands for the user's key where only the length of a message is checked."""


class KeyUser(io.ComfyNode):
    """A node that uses the key of the installation where no key is connected; it runs again when that key changes."""

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> str:
        return installation_key().fingerprint


class KeyNode(io.ComfyNode):
    """Loads or creates a key."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Key",
            display_name="Watermark Key (Copyright Holder)",
            search_aliases=["watermark key", "secret key", "copyright", "owner"],
            category=CATEGORY,
            description="The secret key of your watermarks: keep a copy of its file, because without it none of them "
            "can be read.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[FILE, VARIABLE],
                    default=FILE,
                    tooltip=f"Read a key file, or the environment variable {ENVIRONMENT} of the server.",
                ),
                io.String.Input(
                    "name",
                    default=DEFAULT,
                    tooltip=f"Name of the key file in the folder user/{FOLDER} of ComfyUI; not the key itself.",
                ),
                io.Boolean.Input(
                    "create",
                    default=True,
                    tooltip="Create a new key if there is none of that name. Existing keys are never changed.",
                ),
            ],
            outputs=[KeyType.Output("key", "key", tooltip="For the nodes that mark and read.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        # Of the name alone: ComfyUI repeats an error for each input that is asked for.
        try:
            return name is None or bool(_path(name))
        except ValueError as error:
            return redacted(str(error))

    @classmethod
    def fingerprint_inputs(cls, source: str | None, name: str | None, create: bool | None) -> str:
        if source is None or name is None or create is None:
            return ""  # linked: not known yet
        try:
            return _load(source, name, create).fingerprint
        except KeyFileError:
            return ""  # execute raises it

    @classmethod
    @ordinary_tensors
    def execute(cls, source: str, name: str, create: bool) -> io.NodeOutput:
        return io.NodeOutput(_load(source, name, create))


def installation_key() -> Key:
    """The key of this installation, made on first use.

    Raises:
        KeyFileError: If its file is damaged or cannot be written.
    """
    return _load(FILE, DEFAULT, create=True)


def reader_of(extractor: Reader | None, key: Key | None) -> Reader:
    """The extractor and the key that a node works with: what is connected, else the built-in one and `PLACE`.

    Raises:
        KeyFileError: See `installation_key`.
        ValueError: The extractor has another key than the one that is connected.
    """
    if extractor is None:
        key = installation_key() if key is None else key
        return Reader(load_extractor(NAMES[0], key), key)
    if key is not None and key != extractor.key:
        raise ValueError("key: it is not the key of the extractor; connect the key to Load Watermark Extractor alone")
    return extractor


def _load(source: str, name: str, create: bool) -> Key:
    try:
        if source == VARIABLE:
            return Key.from_environment()
        path = _path(name)
        if not create:
            return Key.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Key.load_or_new(path)
    except KeyFileError as error:
        if error.remedy is None:
            raise
        remedy = f"choose {FILE!r} as source" if source == VARIABLE else "switch `create` on, or choose another name"
        if source == FILE and create:
            remedy = f"restore the file from a copy, or move it out of user/{FOLDER}"
        raise KeyFileError(error.reason, remedy) from None


def _path(name: str) -> Path:
    """The file of a key. A linked name is checked here only; `validate_inputs` gets widget values alone.

    Raises:
        KeyFileError: If the name would lead out of the folder of keys, or is a key itself.
    """
    if redacted(name) != name:
        raise KeyFileError("name: this is a key, not a name; put it into a file, and do not share this workflow")
    plain = name.strip() == name and name.isprintable() and not name.startswith(".")
    if not name or not plain or set(name) & set('/\\:*?"<>|'):
        raise KeyFileError(f"name: {name!r} is not a file name; use letters and digits")
    if len(os.fsencode(name)) > LONGEST:
        raise KeyFileError(f"name: has {len(name)} characters; use at most {LONGEST} letters and digits")
    return Path(folder_paths.get_user_directory()) / FOLDER / f"{name}.key"
