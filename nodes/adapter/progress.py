"""Progress, previews and Cancel for the core's generators: whoever iterates decides what happens between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

__all__ = ["Progress"]

State = TypeVar("State")
PREVIEW_SIDE = 512


class Progress:
    """A node's progress bar.

    Args:
        total: Steps of all work that the node does.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.bar = comfy.utils.ProgressBar(total)

    def advance(self, preview: Tensor | None = None, to: int | None = None) -> None:
        """One step further, or up to step `to`.

        Args:
            preview: A picture (1, 3, H, W) in [0, 1] to show.
            to: The step that is reached; work that ended early skips steps.

        Raises:
            InterruptProcessingException: If the user pressed Cancel.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = self.done + 1 if to is None else to
        shown = None if preview is None else ("JPEG", picture(preview), PREVIEW_SIDE)
        self.bar.update_absolute(self.done, self.total, shown)

    def follow(
        self, states: Iterable[State], steps: int, preview: Callable[[State], Tensor | None] = lambda state: None
    ) -> Iterator[State]:
        """Pass a generator's states through, one step each; in the end `steps` are done however early it stopped."""
        end = self.done + steps
        for state in states:
            self.advance(preview(state), min(self.done + 1, end))
            yield state
        self.advance(to=end)


def picture(image: Tensor) -> Image.Image:
    """The first image of (B, 3, H, W) in [0, 1]."""
    pixels = image[0].detach().float().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
