"""Progress, previews and Cancel for the core's generators."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

import comfy.model_management
import comfy.utils
from einops import rearrange
from PIL import Image
from torch import Tensor

from ...onrw_core.imaging.rounding import to_8bit
from ...onrw_core.stages.progress import result_of

__all__ = ["Progress"]

State = TypeVar("State")
Result = TypeVar("Result")
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
        """Advance by one step, or to step `to`.

        Args:
            preview: An image (1, 3, H, W) in [0, 1] to show.
            to: The step that is reached; work that ends early skips steps.

        Raises:
            InterruptProcessingException: If the user pressed Cancel.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done = self.done + 1 if to is None else to
        shown = None if preview is None else ("JPEG", _as_pil(preview), PREVIEW_SIDE)
        self.bar.update_absolute(self.done, self.total, shown)

    def result_of(
        self,
        states: Generator[State, None, Result],
        steps: int,
        preview: Callable[[State], Tensor | None] = lambda state: None,
    ) -> Result:
        """Run a generator of the core to its end, with one step of the bar per state, and fill the bar up to `steps`.

        Args:
            states: Yields its progress and returns its result.
            steps: Number of the bar's steps that the generator accounts for.
            preview: The image of a state, (1, 3, H, W) in [0, 1].
        """
        end = self.done + steps
        result = result_of(states, lambda state: self.advance(preview(state), min(self.done + 1, end)))
        self.advance(to=end)
        return result


def _as_pil(image: Tensor) -> Image.Image:
    """The first image of (B, 3, H, W) in [0, 1]."""
    return Image.fromarray(rearrange(to_8bit(image[0].float()), "c h w -> h w c").cpu().numpy())
