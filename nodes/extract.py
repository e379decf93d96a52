"""ONRW_LoadExtractor and ONRW_Extract: who reads, and what is read."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.extractors.loading import NAMES
from ..onrw_core.keys import Key
from ..onrw_core.message import Message
from . import images
from .adapter import Progress, ordinary_tensors
from .reading import read, straightened
from .sockets import CATEGORY, ExtractorChoice, ExtractorType, KeyType, MessageType, per_image

__all__ = ["ExtractNode", "LoadExtractorNode"]

FOLDER = "watermark_extractors"
EXTENSIONS = {".safetensors", ".pth", ".pt", ".onnx"}
TARGET_FPR = 1e-6

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.folder_names_and_paths[FOLDER][0], EXTENSIONS)


class LoadExtractorNode(io.ComfyNode):
    """Chooses the reader of marks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_LoadExtractor",
            display_name="ONRW Load Extractor",
            category=CATEGORY,
            description="The reader that marks are made for. keyed needs no weights and no download; decoders of "
            "others "
            f"(HiDDeN, Stable Signature, RivaGAN, TorchScript) are files in models/{FOLDER}.",
            inputs=[
                KeyType.Input(
                    "key", tooltip="From ONRW Key. Only its holder can read keyed marks, and check any message."
                ),
                io.Combo.Input(
                    "extractor",
                    options=[*NAMES, *folder_paths.get_filename_list(FOLDER)],
                    default=NAMES[0],
                    tooltip="keyed: built in, finds crops, rotations and scales by itself. rivagan: the decoder of "
                    "the package "
                    f"invisible-watermark, 32 bits. Files: from models/{FOLDER}.",
                ),
                io.Boolean.Input(
                    "allow_torchscript",
                    default=False,
                    tooltip="Let the program in a TorchScript file run. Only for files whose origin you trust.",
                ),
            ],
            outputs=[ExtractorType.Output("reader", "extractor", tooltip="For the nodes that mark and read.")],
        )

    @classmethod
    def fingerprint_inputs(cls, extractor: str, allow_torchscript: bool, **linked: object) -> float:
        return 0.0 if extractor in NAMES else Path(_source(extractor)).stat().st_mtime

    @classmethod
    @ordinary_tensors
    def execute(cls, key: Key, extractor: str, allow_torchscript: bool) -> io.NodeOutput:
        choice = ExtractorChoice(_source(extractor), key, allow_torchscript)
        choice.reader(48)  # a damaged file is an error here, not after minutes of optimisation
        return io.NodeOutput(choice)


def _source(extractor: str) -> str:
    return extractor if extractor in NAMES else folder_paths.get_full_path_or_raise(FOLDER, extractor)


class ExtractNode(io.ComfyNode):
    """Reads marks from images alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_Extract",
            display_name="ONRW Extract",
            category=CATEGORY,
            description="Reads the mark from an image alone: no original, prompt or model is needed. Of a batch, "
            "every image "
            "is read; the numbers are those of the weakest.",
            inputs=[
                io.Image.Input("image", tooltip="The image as it was received: cropped, turned, compressed, ..."),
                ExtractorType.Input("extractor", tooltip="From ONRW Load Extractor, with the key of the mark."),
                io.Float.Input(
                    "target_fpr",
                    default=TARGET_FPR,
                    min=1e-12,
                    max=0.1,
                    step=1e-7,
                    round=False,
                    tooltip="Share of unmarked images that may be called marked.",
                ),
                MessageType.Input(
                    "message", optional=True, tooltip="What the mark should say; adds match and bit accuracy."
                ),
            ],
            outputs=[
                io.String.Output("text", "text", tooltip="The message, or that nothing was found; one line per image."),
                io.Boolean.Output("detected", "detected", tooltip="Whether every image carries a mark of this key."),
                io.Float.Output(
                    "log10_p", "log10_p", tooltip="log10 of the chance that an unmarked image looks so marked."
                ),
                io.Boolean.Output(
                    "match", "match", tooltip="Whether the bits of every image are those of the given message."
                ),
                io.Float.Output(
                    "bit_accuracy",
                    "bit_accuracy",
                    tooltip="Share of the given message's bits that were read; 0 without one.",
                ),
                io.String.Output("report", "report", tooltip="Everything as JSON, one line per image."),
                io.Image.Output("straight", "straight", tooltip="The images set straight: turned and mirrored back."),
            ],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        image: Tensor,
        extractor: ExtractorChoice,
        target_fpr: float,
        message: tuple[Message, ...] | None = None,
    ) -> io.NodeOutput:
        pictures = images.from_comfy(image)
        progress = Progress(len(pictures))
        results, straight = [], []
        for index, picture in enumerate(pictures):
            expected = None if message is None else per_image(message, index, len(pictures), "message")
            found = read(extractor, picture, expected, target_fpr)
            results.append(found)
            straight.append(straightened(picture, found))
            progress.advance()
        text = "\n".join(found.text() for found in results)
        return io.NodeOutput(
            text,
            all(found.detected for found in results),
            max(found.log10_p for found in results),
            message is not None and all(found.match for found in results),
            0.0 if message is None else min(found.bit_accuracy for found in results),
            "\n".join(json.dumps(found.report()) for found in results),
            images.to_comfy(_batch(straight)),
            ui=ui.PreviewText(text),
        )


def _batch(pictures: list[Tensor]) -> Tensor:
    """Pictures of several sizes as one batch, black at the right and the bottom."""
    height = max(picture.shape[-2] for picture in pictures)
    width = max(picture.shape[-1] for picture in pictures)
    return torch.cat([F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in pictures])
