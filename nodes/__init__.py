"""The nodes: thin wrappers of the core for ComfyUI. Only this package imports ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attack import AttackNode
from .audit import AuditNode
from .denoise import ComposeNode, ConstrainedDenoiseNode
from .detect import DetectNode
from .embed import EmbedNode
from .extractor import LoadExtractorNode
from .folder import LoadFolderNode, provide_samples
from .guider import GuiderNode
from .inversion import LoadInversionNode, NullTextInversionNode, SaveInversionNode
from .keys import KeyNode
from .message import MessageNode
from .mini import LoadMiniNode
from .optimise import OptimizeNoiseNode
from .prompt import EncodePromptNode
from .read import ReadNode
from .save import SaveImageNode

__all__ = ["NODES", "OnrwExtension", "comfy_entrypoint"]

NODES: list[type[io.ComfyNode]] = [
    SaveImageNode,
    EmbedNode,
    ReadNode,
    DetectNode,
    KeyNode,
    AttackNode,
    AuditNode,
    LoadFolderNode,
    LoadMiniNode,
    MessageNode,
    LoadExtractorNode,
    EncodePromptNode,
    NullTextInversionNode,
    OptimizeNoiseNode,
    ConstrainedDenoiseNode,
    GuiderNode,
    ComposeNode,
    SaveInversionNode,
    LoadInversionNode,
]


class OnrwExtension(ComfyExtension):
    """The extension that ComfyUI loads: all nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI when it loads the pack."""
    provide_samples()
    return OnrwExtension()
