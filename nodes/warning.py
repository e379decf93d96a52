"""Warnings that are shown on a node and written to the log."""

from __future__ import annotations

import logging
import sys

from comfy_api.latest import io

from ..onrw_core.stages.robustness import Robustness

__all__ = ["ALREADY_MARKED", "warn", "warn_already_marked", "warn_unreadable", "warn_weak"]

ALREADY_MARKED = "Marked already with this key"

log = logging.getLogger(__name__)


def warn(node: type[io.ComfyNode], text: str, on_node: bool = True) -> None:
    """Show a warning on a node that is running, and log it.

    Args:
        node: The class that `execute` was called on; its schema asks for the hidden unique_id.
        text: What is wrong, and the remedy.
        on_node: Whether to show it; a node with a card says so there.
    """
    log.warning("%s: %s", node.define_schema().display_name, text)
    if not on_node:
        return
    running = getattr(sys.modules.get("server"), "PromptServer", None)  # none where nodes run without ComfyUI's server
    server, hidden = getattr(running, "instance", None), node.hidden
    if server is not None and hidden is not None and hidden.unique_id is not None:
        server.send_progress_text(f"Warning: {text}", hidden.unique_id)


def warn_unreadable(
    node: type[io.ComfyNode], unreadable: list[int], count: int, remedy: str, on_node: bool = True
) -> None:
    """Warn about the images of a batch that were marked and from which the watermark cannot be read, if any.

    Args:
        node: See `warn`.
        unreadable: Their numbers, from 0.
        count: Images of the batch.
        remedy: What the user can do.
        on_node: See `warn`.
    """
    if unreadable:
        warn(node, f"the watermark cannot be read from {_named(unreadable, count)}; {remedy}", on_node)


def warn_already_marked(node: type[io.ComfyNode], unchanged: list[int], count: int) -> None:
    """Log which images of a batch were marked already with the same key, if any; their cards say so on the node.

    Args:
        node: See `warn`.
        unchanged: Their numbers, from 0.
        count: Images of the batch.
    """
    if unchanged:
        remedy = "connect the original, or another Watermark Key, to mark it"
        warn(node, f"{_named(unchanged, count)}: {ALREADY_MARKED.lower()}, left unchanged; {remedy}", on_node=False)


def warn_weak(node: type[io.ComfyNode], found: Robustness) -> None:
    """Warn, before the work, that an image has little room for a watermark at the requested quality.

    Args:
        node: See `warn`.
        found: The forecast.
    """
    warn(node, f"little room for a watermark; in a trial {found}")


def _named(numbers: list[int], count: int) -> str:
    """Images of a batch of `count`, by their numbers."""
    return "the image" if count == 1 else f"images {', '.join(map(str, numbers))} (from 0)"
