"""ONRW for ComfyUI: the entry point of the node pack. Importing it without ComfyUI does nothing."""

import importlib.util

if importlib.util.find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
