"""The nodes: thin wrappers of the core for ComfyUI. Only this package and its parts import ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attack import AttackNode, RobustnessReportNode
from .denoise import ComposeNode, ConstrainedDenoiseNode
from .extract import ExtractNode, LoadExtractorNode
from .guider import GuiderNode
from .inversion import LoadInversionNode, NullTextInversionNode, SaveInversionNode
from .keys import KeyNode
from .message import MessageNode
from .mini import LoadMiniNode
from .optimise import OptimizeNoiseNode
from .prompt import EncodePromptNode
from .watermark import WatermarkNode

__all__ = ["NODES", "OnrwExtension", "comfy_entrypoint"]

NODES: list[type[io.ComfyNode]] = [
    LoadMiniNode,
    KeyNode,
    EncodePromptNode,
    MessageNode,
    LoadExtractorNode,
    NullTextInversionNode,
    OptimizeNoiseNode,
    ConstrainedDenoiseNode,
    GuiderNode,
    ComposeNode,
    ExtractNode,
    AttackNode,
    RobustnessReportNode,
    WatermarkNode,
    SaveInversionNode,
    LoadInversionNode,
]


class OnrwExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    """Called by ComfyUI."""
    return OnrwExtension()
