"""ONRW_Key: the secret key, from a file in ComfyUI's user folder or from the environment. Never a widget's value."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..onrw_core.keys import ENVIRONMENT, Key, KeyFileError
from .adapter import ordinary_tensors
from .sockets import CATEGORY, KeyType

__all__ = ["KeyNode"]

FILE, VARIABLE = "file", f"environment ({ENVIRONMENT})"
FOLDER = "__onrw_keys"  # ComfyUI does not serve folders of its user directory that begin with two underscores


class KeyNode(io.ComfyNode):
    """Loads or makes a key."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_Key",
            display_name="ONRW Key",
            category=CATEGORY,
            description="The secret key that marks are made and read with. Keep a copy of its file: without it no "
            "mark of "
            "yours can be read again.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[FILE, VARIABLE],
                    default=FILE,
                    tooltip=f"Read a key file, or the environment variable {ENVIRONMENT} of the server.",
                ),
                io.String.Input(
                    "name",
                    default="default",
                    tooltip=f"Name of the key file in the folder user/{FOLDER} of ComfyUI. A name, not the key.",
                ),
                io.Boolean.Input(
                    "create",
                    default=True,
                    tooltip="Make a new key of that name where there is none. Existing keys are never changed.",
                ),
            ],
            outputs=[KeyType.Output("key", "key", tooltip="For ONRW Message and ONRW Load Extractor.")],
        )

    @classmethod
    def validate_inputs(cls, source: str = FILE, name: str = "default", create: bool = True) -> bool | str:
        if name is not None and (not name.strip() or Path(name).name != name or name.startswith(".")):
            return f"name: {name!r} is not a file name; use letters and digits"
        return True

    @classmethod
    def fingerprint_inputs(cls, source: str, name: str, create: bool) -> str:
        try:
            return _load(source, name, create).fingerprint
        except KeyFileError:
            return ""  # execute raises it

    @classmethod
    @ordinary_tensors
    def execute(cls, source: str, name: str, create: bool) -> io.NodeOutput:
        return io.NodeOutput(_load(source, name, create))


def _load(source: str, name: str, create: bool) -> Key:
    if source != FILE:
        return Key.from_environment()
    path = Path(folder_paths.get_user_directory()) / FOLDER / f"{name}.key"
    if create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Key.new().save(path)
    return Key.load(path)
