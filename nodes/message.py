"""ONRW_Message: what a mark says."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.keys import Key
from ..onrw_core.message import ID_BITS, SIZES, Message, encode_id, encode_text, random_id
from .adapter import ordinary_tensors
from .sockets import CATEGORY, KeyType, MessageType

__all__ = ["MessageNode"]

TEXT, HEX_ID, RANDOM_ID = "text", "hex id", "random id"
KINDS = [TEXT, HEX_ID, RANDOM_ID]
AUTO = "auto"
NO_KEY = Key(bytes(32))  # stands for the user's key where only the length of a message is checked


class MessageNode(io.ComfyNode):
    """Encodes a text or an id as bits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_Message",
            display_name="ONRW Message",
            category=CATEGORY,
            description="The message of a mark, with error correction and a check that only the holder of the key "
            "can make.",
            inputs=[
                KeyType.Input("key", tooltip="From ONRW Key; the reader needs the same."),
                io.Combo.Input(
                    "kind",
                    options=KINDS,
                    default=TEXT,
                    tooltip="A short text, an id in hexadecimal digits, or an id drawn at random from the seed.",
                ),
                io.String.Input(
                    "value", default="ONRW", tooltip="The text, or the hexadecimal digits. Not used by a random id."
                ),
                io.Combo.Input(
                    "num_bits",
                    options=[AUTO, *map(str, SIZES)],
                    default=AUTO,
                    tooltip="Raw bits of the mark. auto: the fewest that hold the message. Fewer bits are more robust.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Draws the random id.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="A batch: with a random id, every image gets an id of its own. Otherwise all carry the "
                    "same.",
                ),
            ],
            outputs=[
                MessageType.Output(
                    "message", "message", tooltip="For the nodes that mark, and for those that check a reading."
                ),
                io.String.Output("bits", "bits", tooltip="The raw bits as they are marked, one line per message."),
            ],
        )

    @classmethod
    def validate_inputs(cls, kind: str = TEXT, value: str | None = None, num_bits: str = AUTO) -> bool | str:
        if value is None or kind == RANDOM_ID:
            return True
        try:
            _encode(kind, value, num_bits, NO_KEY)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @ordinary_tensors
    def execute(
        cls, key: Key, kind: str, value: str, num_bits: str, seed: int, images: Tensor | None = None
    ) -> io.NodeOutput:
        if kind == RANDOM_ID:
            generator = torch.Generator().manual_seed(seed)
            count = 1 if images is None else len(images)
            size = ID_BITS if num_bits == AUTO else int(num_bits)
            messages = tuple(random_id(key, generator, size) for _ in range(count))
        else:
            messages = (_encode(kind, value, num_bits, key),)
        bits = "\n".join("".join(map(str, message.bits.tolist())) for message in messages)
        shown = "\n".join(f"{message.kind} {message.value}" for message in messages)
        return io.NodeOutput(messages, bits, ui=ui.PreviewText(shown))


def _encode(kind: str, value: str, num_bits: str, key: Key) -> Message:
    encode = encode_text if kind == TEXT else encode_id
    return encode(value, key, None if num_bits == AUTO else int(num_bits))
