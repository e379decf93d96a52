"""ONRW_EncodePrompt: a prompt whose words can be found again in the attention maps."""

from __future__ import annotations

import comfy.sd
from comfy_api.latest import io

from .adapter import ordinary_tensors
from .adapter.conditioning import CONTENT, WORD
from .adapter.mini import ONCE
from .sockets import CATEGORY

__all__ = ["EncodePromptNode"]


class EncodePromptNode(io.ComfyNode):
    """CLIPTextEncode that notes where the words are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_EncodePrompt",
            display_name="ONRW Encode Prompt",
            category=CATEGORY,
            description="Encodes a prompt like CLIP Text Encode, and notes which tokens are words, so that the "
            "pseudo-mask "
            "can follow them. The conditioning works with every stock node.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder, from a checkpoint loader or ONRW Load Mini."),
                io.String.Input(
                    "text",
                    default="a photo",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows. ComfyUI's (word:1.2) weights apply.",
                ),
                io.String.Input(
                    "word",
                    default="",
                    tooltip="A word or phrase of the text that the pseudo-mask should follow; empty for all words.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", "conditioning", tooltip="The prompt, for stock nodes and for ONRW."
                )
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(cls, clip: comfy.sd.CLIP, text: str, word: str) -> io.NodeOutput:
        if clip is None:
            raise ValueError("clip: the checkpoint has no text encoder; load one with a CLIP loader")
        spans = {CONTENT: content_tokens(clip, text)}
        if word.strip():
            spans[WORD] = word_tokens(clip, text, word.strip())
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=spans))


def _entries(clip: comfy.sd.CLIP, text: str, **options: bool) -> list[tuple]:
    """(token, weight, word) of every token of the first text encoder, chunk after chunk; word 0 is no word."""
    chunks = next(iter(clip.tokenize(text, return_word_ids=True, tokenizer_options=options).values()))
    return [entry for chunk in chunks for entry in chunk]


def content_tokens(clip: comfy.sd.CLIP, text: str) -> tuple[int, ...]:
    """Indices of the tokens that are words: no begin, end or padding."""
    return tuple(index for index, entry in enumerate(_entries(clip, text)) if entry[2])


def word_tokens(clip: comfy.sd.CLIP, text: str, word: str) -> tuple[int, ...]:
    """Indices of the tokens of a word or phrase, wherever it occurs in the text.

    Raises:
        ValueError: If the text does not hold it.
    """
    entries = _entries(clip, text)
    wanted = [entry[0] for entry in _entries(clip, word, **{ONCE: True}) if entry[2]]
    found: set[int] = set()
    for start in range(len(entries) - len(wanted) + 1):
        run = entries[start : start + len(wanted)]
        # An encoder that repeats short texts goes from the last word to the first: no phrase of the text.
        in_order = all(a[2] <= b[2] for a, b in zip(run, run[1:], strict=False))
        if wanted and in_order and [entry[0] for entry in run] == wanted:
            found.update(range(start, start + len(wanted)))
    if not found:
        raise ValueError(f"word: {word!r} is not in the text; choose a word of {text!r}")
    return tuple(sorted(found))
