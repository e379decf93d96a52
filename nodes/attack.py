"""ONRW_Attack and ONRW_RobustnessReport: what happens to images, and what the mark survives."""

from __future__ import annotations

import json

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.attacks import ATTACKS, SUITES, Attack, attack, suite
from ..onrw_core.message import Message
from . import images
from .adapter import Progress, ordinary_tensors
from .charts import bars
from .reading import read
from .sockets import CATEGORY, ExtractorChoice, ExtractorType, MessageType, per_image

__all__ = ["AttackNode", "RobustnessReportNode"]

RANDOM_SUITE = "onrw12-random"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
NONE = "identity"


class AttackNode(io.ComfyNode):
    """Does to an image what happens to images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        kinds = "\n".join(
            f"{name}: {kind.description}" + (f" ({kind.low:g} to {kind.high:g} {kind.unit})" if kind.unit else "")
            for name, kind in ATTACKS.items()
        )
        return io.Schema(
            node_id="ONRW_Attack",
            display_name="ONRW Attack",
            category=CATEGORY,
            description="Crops, turns, compresses, blurs ... an image, to try what a mark survives.",
            inputs=[
                io.Image.Input("image", tooltip="The images."),
                io.Combo.Input("attack", options=list(ATTACKS), default="jpeg", tooltip=f"What to do.\n{kinds}"),
                io.Boolean.Input(
                    "default_strength",
                    default=True,
                    tooltip="Use the usual strength of the attack; off: the one below.",
                ),
                io.Float.Input(
                    "strength",
                    default=50.0,
                    min=min(kind.low for kind in ATTACKS.values()),
                    max=max(kind.high for kind in ATTACKS.values()),
                    step=0.01,
                    round=False,
                    tooltip="In the unit of the attack, see there: JPEG quality, degrees, remaining area, ...",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Draws noise and places.",
                ),
            ],
            outputs=[io.Image.Output("attacked", "attacked", tooltip="The images afterwards; crops are smaller.")],
        )

    @classmethod
    def validate_inputs(
        cls, attack: str | None = None, default_strength: bool = True, strength: float | None = None
    ) -> bool | str:
        if attack not in ATTACKS or default_strength or strength is None:
            return True
        try:
            _attack(attack, default_strength, strength)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    @ordinary_tensors
    def execute(cls, image: Tensor, attack: str, default_strength: bool, strength: float, seed: int) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        attacked = _attack(attack, default_strength, strength)(images.from_comfy(image), generator)
        return io.NodeOutput(images.to_comfy(attacked.images))


def _attack(name: str, default: bool, strength: float) -> Attack:
    return attack(name, None if default or not ATTACKS[name].unit else strength)


class RobustnessReportNode(io.ComfyNode):
    """Reads a marked image after each attack of a suite."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_RobustnessReport",
            display_name="ONRW Robustness Report",
            category=CATEGORY,
            description="Attacks a marked image in many ways, and reads it after each.",
            inputs=[
                io.Image.Input("image", tooltip="Marked images."),
                ExtractorType.Input("extractor", tooltip="Who reads."),
                MessageType.Input("message", tooltip="What the mark says."),
                io.Combo.Input(
                    "suite",
                    options=[*SUITES, RANDOM_SUITE],
                    default=next(iter(SUITES)),
                    tooltip="onrw12: the twelve usual transformations. onrw12-random: the same kinds at random "
                    "strengths and "
                    "places. extended: many more.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Draws noise, places and the random suite's strengths.",
                ),
            ],
            outputs=[
                io.Image.Output("chart", "chart", tooltip="Bit accuracy after each attack."),
                io.String.Output("table", "table", tooltip="The same as a table."),
                io.String.Output("report", "report", tooltip="The same as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls, image: Tensor, extractor: ExtractorChoice, message: tuple[Message, ...], suite: str, seed: int
    ) -> io.NodeOutput:
        pictures = images.from_comfy(image)
        attacks = [attack(NONE), *_suite(suite, seed)]
        progress = Progress(len(attacks) * len(pictures))
        entries = []
        for one in attacks:
            found = []
            for index, picture in enumerate(pictures.split(1)):
                expected = per_image(message, index, len(pictures), "message")
                generator = torch.Generator().manual_seed((seed + index) & MAX_SEED)
                attacked = one(picture, generator).images
                found.append(read(extractor, attacked[0], expected))
                progress.advance(attacked)
            entries.append(
                {
                    "attack": "none" if one.name == NONE else str(one),
                    "bit_accuracy": sum(f.bit_accuracy for f in found) / len(found),
                    "detected": sum(f.detected for f in found) / len(found),
                    "log10_p": max(f.log10_p for f in found),
                }
            )
        mean = sum(entry["bit_accuracy"] for entry in entries[1:]) / len(entries[1:])
        title = f"{suite}: mean bit accuracy {mean:.1%} ({len(pictures)} image{'s' if len(pictures) > 1 else ''})"
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
        report = json.dumps({"suite": suite, "seed": seed, "mean_bit_accuracy": mean, "attacks": entries})
        return io.NodeOutput(chart, table, report, ui=ui.PreviewText(table))


def _suite(name: str, seed: int) -> list[Attack]:
    return suite(name, torch.Generator().manual_seed(seed))
