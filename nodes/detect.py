"""ONRW_Detect: the public label of an image, which needs no key."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..onrw_core.api import detect
from ..onrw_core.imaging.geometry import size_of
from ..onrw_core.imaging.pixels import MIN_SIDE
from ..onrw_core.strict_json import to_json
from . import images
from .adapter import Progress, ordinary_tensors
from .card import detection_card, shown
from .schemas import schema
from .sockets import CATEGORY

__all__ = ["DetectNode"]


class DetectNode(io.ComfyNode):
    """Detects the public layer of every image of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_Detect",
            display_name="Detect Watermark Label (AI Disclosure)",
            search_aliases=["detect watermark", "public label", "AI-generated", "provenance", "disclosure"],
            category=CATEGORY,
            description="Says without any key whether an image carries an ONRW watermark and its public label, which "
            "everybody can write and remove.",
            inputs=[io.Image.Input("image", tooltip="The images, which may be cropped, rotated, compressed, ...")],
            outputs=[
                io.String.Output("label", "label", tooltip="The public label of each image, or an empty line."),
                io.Boolean.Output("found", "found", tooltip="Whether every image carries an ONRW watermark."),
                io.Float.Output(
                    "log10_p",
                    "log10_p",
                    tooltip="log10 of the p-value: how likely an unmarked image gives such a finding.",
                ),
                io.String.Output("report", "report", tooltip="What was found as JSON, one line per image."),
            ],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(cls, image: Tensor) -> io.NodeOutput:
        received = images.from_comfy(image, min_side=MIN_SIDE)
        progress = Progress(len(received))
        found, cards = [], []
        for each in received:
            found.append(detect(each))
            cards.append(detection_card(found[-1], size_of(each)))
            progress.advance()
        labels = "\n".join(one.label or "" for one in found)
        return io.NodeOutput(
            labels,
            all(one.found for one in found),
            max(one.log10_p for one in found),
            "\n".join(to_json(one.fields()) for one in found),
            ui=shown(cards, text=(labels,)),
        )
