"""ONRW_EncodePrompt: a prompt with the positions of its words among the tokens."""

from __future__ import annotations

import comfy.sd
from comfy_api.latest import io

from .adapter import ordinary_tensors
from .adapter.conditioning import CONTENT, WORD
from .adapter.mini import ONCE
from .adapter.tokens import places
from .schemas import schema
from .sockets import STAGES

__all__ = ["EncodePromptNode"]


class EncodePromptNode(io.ComfyNode):
    """CLIPTextEncode that records which tokens are words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_EncodePrompt",
            display_name="Encode Prompt (Words)",
            search_aliases=["prompt with a word", "pseudo-mask"],
            category=STAGES,
            description="Encodes a prompt like CLIP Text Encode, and records which tokens are words, for the "
            "pseudo-mask.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder, from a checkpoint loader or Load Embedded Model."),
                io.String.Input(
                    "text",
                    default="a photo",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="A prompt that describes the image. ComfyUI's (word:1.2) weights apply.",
                ),
                io.String.Input(
                    "word",
                    default="",
                    tooltip="A word or phrase of the text whose object the pseudo-mask covers. Empty: all words.",
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
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        content, chosen = places(clip.tokenize, text, conditioning[0][0].shape[1], word.strip(), **{ONCE: True})
        spans = {CONTENT: content, **({WORD: chosen} if chosen else {})}
        return io.NodeOutput([[embeddings, {**options, **spans}] for embeddings, options in conditioning])
