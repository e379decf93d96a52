"""ONRW_Audit: a report of how much of a watermark survives each attack of a suite."""

from __future__ import annotations

from typing import TypedDict

from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.attacks import SUITES, Attack, attack, suite
from ..onrw_core.payload.keys import Key
from ..onrw_core.payload.message import Message, raw
from ..onrw_core.strict_json import to_json
from . import images
from .adapter import Progress, numbered, ordinary_tensors
from .charts import bars
from .inputs import extractor, generator_for, key, seed
from .keys import KeyUser, reader_of
from .reading import read
from .schemas import schema
from .sockets import CATEGORY, MessageType, Reader, per_image

__all__ = ["AuditNode"]

RANDOM_SUITE = "onrw12-random"
NONE = "identity"


class Entry(TypedDict):
    """The readings of all images after one attack; accuracy and detection are means, log10_p is the largest."""

    attack: str
    bit_accuracy: float
    detected: float
    log10_p: float


class AuditNode(KeyUser):
    """Reads marked images after each attack of a suite."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Audit",
            display_name="Audit Watermark (Robustness)",
            search_aliases=["watermark benchmark", "robustness test", "audit watermark"],
            category=CATEGORY,
            description="Attacks marked images in many ways and reports after which attacks the watermark can be read.",
            inputs=[
                io.Image.Input("image", tooltip="Marked images."),
                io.Combo.Input(
                    "suite",
                    options=[*SUITES, RANDOM_SUITE],
                    default=next(iter(SUITES)),
                    tooltip="onrw12: twelve common attacks. onrw12-random: the same attacks at random strengths and "
                    "positions. extended: many more attacks.",
                ),
                seed("Seed of random noise and positions, and of the strengths in onrw12-random."),
                key(),
                MessageType.Input(
                    "message",
                    optional=True,
                    tooltip="The message that the watermarks carry; without it, what is read before any attack.",
                ),
                extractor(),
            ],
            outputs=[
                io.Image.Output("chart", "chart", tooltip="Bit accuracy after each attack."),
                io.String.Output("table", "table", tooltip="The same figures as a table."),
                io.String.Output("report", "report", tooltip="The same figures as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        image: Tensor,
        suite: str,
        seed: int,
        key: Key | None = None,
        message: tuple[Message, ...] | None = None,
        extractor: Reader | None = None,
    ) -> io.NodeOutput:
        reader = reader_of(extractor, key)
        originals = images.from_comfy(image)
        expected = [
            per_image(message, index, len(originals), "message")
            if message
            else _read_before(each[0], reader, numbered("image", index, len(originals)))
            for index, each in enumerate(originals.split(1))
        ]
        attacks = [attack(NONE), *_suite(suite, seed)]
        progress = Progress(len(attacks) * len(originals))
        entries: list[Entry] = []
        for each in attacks:
            found = []
            for index, original in enumerate(originals.split(1)):
                generator = generator_for(seed, index)
                attacked = each(original, generator).images
                found.append(read(reader, attacked[0], expected[index]))
                progress.advance(attacked)
            entries.append(
                {
                    "attack": "none" if each.name == NONE else str(each),
                    "bit_accuracy": sum(f.match.bit_accuracy for f in found if f.match) / len(found),
                    "detected": sum(f.reading.detected for f in found) / len(found),
                    "log10_p": max(f.reading.log10_p for f in found),
                }
            )
        mean = sum(entry["bit_accuracy"] for entry in entries[1:]) / len(entries[1:])
        title = f"{suite}: mean bit accuracy {mean:.1%} ({len(originals)} image{'s' if len(originals) > 1 else ''})"
        chart = bars(title, [(e["attack"], e["bit_accuracy"], e["detected"] == 1) for e in entries])
        table = "\n".join(
            [
                f"{'attack':<28} {'bits':>7} {'detected':>9} {'log10 p':>8}",
                *(
                    f"{e['attack']:<28} {e['bit_accuracy']:>7.1%} {e['detected']:>9.0%} {e['log10_p']:>8.1f}"
                    for e in entries
                ),
                f"{'mean':<28} {mean:>7.1%}",
            ]
        )
        report = to_json({"suite": suite, "seed": seed, "mean_bit_accuracy": mean, "attacks": entries})
        return io.NodeOutput(chart, table, report, ui=ui.PreviewText(table))


def _read_before(image: Tensor, reader: Reader, name: str) -> Message:
    """The bits that are read from an image (3, H, W) of that name before any attack.

    Raises:
        ValueError: The image carries no watermark.
    """
    reading = reader.extractor.read(image, reader.key)
    if not reading.detected:
        raise ValueError(f"{name}: it carries no watermark of this key; connect a marked image")
    return raw(reading.bits)


def _suite(name: str, seed: int) -> list[Attack]:
    return suite(name, generator_for(seed))
