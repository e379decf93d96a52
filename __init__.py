"""ONRW for ComfyUI: the entry point of the node pack. Importing it without ComfyUI does nothing."""

import importlib.util

if importlib.util.find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "web"

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
