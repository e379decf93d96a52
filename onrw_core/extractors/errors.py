"""What goes wrong with a decoder file."""

from __future__ import annotations

__all__ = ["ExtractorError"]


class ExtractorError(ValueError):
    """A decoder that is missing, damaged, not allowed, or not what its name says."""
