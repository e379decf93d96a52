"""ONRW_Message: the message that a watermark carries."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.payload.keys import Key, redacted
from ..onrw_core.payload.message import ID_BITS, SIZES, Message, bit_string, encode_id, encode_text, random_id
from .adapter import ordinary_tensors
from .inputs import generator_for, key, seed
from .keys import NO_KEY, KeyUser, installation_key
from .schemas import schema
from .sockets import STAGES, MessageType

__all__ = ["MessageNode"]

TEXT, HEX_ID, RANDOM_ID = "text", "hex id", "random id"
KINDS = [TEXT, HEX_ID, RANDOM_ID]
AUTO = "auto"


class MessageNode(KeyUser):
    """Encodes a text or an id as bits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Message",
            display_name="Watermark Message",
            search_aliases=["watermark text", "watermark id"],
            category=STAGES,
            description="Encodes the message of a watermark, with error correction and a check value that only the key "
            "can produce.",
            inputs=[
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
                    tooltip="Number of bits of the watermark. auto: the fewest that the message needs. Fewer bits are "
                    "more robust.",
                ),
                seed("Seed of the random id."),
                key(),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="A batch of images. With the kind random id, every image gets a different id; otherwise "
                    "all images carry the same message.",
                ),
            ],
            outputs=[
                MessageType.Output(
                    "message",
                    "message",
                    tooltip="For nodes that mark images, and for nodes that compare a reading with it.",
                ),
                io.String.Output("bits", "bits", tooltip="The bits that are embedded, one line per message."),
            ],
        )

    @classmethod
    def validate_inputs(cls, value: str | None = None) -> bool | str:
        # Of the value alone, as ComfyUI repeats an error for each input that is asked for: it is a text or an id.
        errors = []
        for kind in (TEXT, HEX_ID):
            try:
                return not value or bool(_encode(kind, value, AUTO, NO_KEY))
            except ValueError as error:
                errors.append(redacted(str(error)))
        return errors[0]

    @classmethod
    @ordinary_tensors
    def execute(
        cls, kind: str, value: str, num_bits: str, seed: int, key: Key | None = None, images: Tensor | None = None
    ) -> io.NodeOutput:
        key = installation_key() if key is None else key
        if kind == RANDOM_ID:
            generator = generator_for(seed)
            count = 1 if images is None else len(images)
            size = _bits(num_bits) or ID_BITS
            messages = tuple(random_id(key, generator, size) for _ in range(count))
        else:
            messages = (_encode(kind, value, num_bits, key),)
        bits = "\n".join(bit_string(message.bits) for message in messages)
        shown = "\n".join(f"{message.kind} {message.value}" for message in messages)
        return io.NodeOutput(messages, bits, ui=ui.PreviewText(shown))


def _encode(kind: str, value: str, num_bits: str, key: Key) -> Message:
    encode = encode_text if kind == TEXT else encode_id
    return encode(value, key, _bits(num_bits))


def _bits(num_bits: str) -> int | None:
    return None if num_bits == AUTO else int(num_bits)
