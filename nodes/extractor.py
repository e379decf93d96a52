"""ONRW_LoadExtractor: choose an extractor."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..onrw_core.extractors.loading import NAMES, load_extractor
from ..onrw_core.payload.keys import Key
from .adapter import ordinary_tensors
from .inputs import key
from .keys import installation_key
from .schemas import advanced, schema
from .sockets import STAGES, ExtractorType, Reader

__all__ = ["LoadExtractorNode"]

FOLDER = "watermark_extractors"
EXTENSIONS = {".safetensors", ".pth", ".pt", ".onnx"}

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.folder_names_and_paths[FOLDER][0], EXTENSIONS)


class LoadExtractorNode(io.ComfyNode):
    """Loads an extractor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_LoadExtractor",
            display_name="Load Watermark Extractor",
            search_aliases=["watermark decoder", "HiDDeN", "RivaGAN"],
            category=STAGES,
            description="Loads the extractor that images are marked for and read with: the built-in one, or a "
            f"third-party decoder in models/{FOLDER}.",
            inputs=[
                io.Combo.Input(
                    "extractor",
                    options=[*NAMES, *folder_paths.get_filename_list(FOLDER)],
                    default=NAMES[0],
                    tooltip="keyed: built in; detects crops, rotations and scales. rivagan: decoder of the package "
                    f"invisible-watermark, 32 bits. Other entries: third-party decoders in models/{FOLDER}.",
                ),
                advanced(
                    io.Boolean.Input,
                    "allow_torchscript",
                    default=False,
                    tooltip="Allow the code in a TorchScript file to run. Only for files from a source that you trust.",
                ),
                key(),
            ],
            outputs=[ExtractorType.Output("reader", "extractor", tooltip="For the nodes that mark and read.")],
        )

    @classmethod
    def fingerprint_inputs(cls, extractor: str, **others: object) -> str:
        changed = 0.0 if extractor in NAMES else Path(_source(extractor)).stat().st_mtime
        return f"{installation_key().fingerprint} {changed}"

    @classmethod
    @ordinary_tensors
    def execute(cls, extractor: str, allow_torchscript: bool, key: Key | None = None) -> io.NodeOutput:
        key = installation_key() if key is None else key
        found = load_extractor(_source(extractor), key, allow_torchscript=allow_torchscript)
        return io.NodeOutput(Reader(found, key))


def _source(extractor: str) -> str:
    return extractor if extractor in NAMES else folder_paths.get_full_path_or_raise(FOLDER, extractor)
