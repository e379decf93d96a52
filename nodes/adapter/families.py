"""Families of diffusion networks: where their blocks are, and how text and image share their attention.

This table is all that the adapter knows of single families. A UNet tells ComfyUI's patches which attention is which;
the others are transformers, whose attention is read by its position. Networks that are not in the table have correct
gradients, and no maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy.latent_formats import LatentFormat
from comfy.model_base import BaseModel
from torch import nn

__all__ = ["Family", "Layout", "factor_of", "family_of"]

BEFORE, AFTER, APART = "before", "after", "apart"
START, END = "start", "end"


@dataclass(frozen=True)
class Layout:
    """Places of a transformer's blocks and tokens.

    Attributes:
        blocks: Attributes of the network that hold the blocks in which the image attends to itself.
        text: Place of the text tokens in the sequence of image tokens: "before" or "after" them; "apart" in a second
            attention of the block.
        aligned: Where the prompt's tokens are in the text's part, beside further tokens (registers, padding): at the
            "start" or at the "end".
        readable: Whether ComfyUI lets the attention of the blocks be read.
    """

    blocks: tuple[str, ...]
    text: str = BEFORE
    aligned: str = START
    readable: bool = True


STREAMS = ("double_blocks", "single_blocks")
LAYOUTS = {
    "OpenAISignatureMMDITWrapper": Layout(("joint_blocks",)),  # SD3, SD3.5
    "Flux": Layout(STREAMS),  # Flux, Schnell, Flux2, LongCat
    "Chroma": Layout(STREAMS),
    "HunyuanVideo": Layout(STREAMS),  # HunyuanImage
    "NextDiT": Layout(("layers",)),  # Lumina2, Z-Image
    "MMDiT": Layout(("double_layers", "single_layers"), aligned=END),  # AuraFlow: after eight registers
    "HiDreamImageTransformer2DModel": Layout(("double_stream_blocks", "single_stream_blocks"), text=AFTER),
    "QwenImageTransformer2DModel": Layout(("transformer_blocks",)),
    "WanModel": Layout(("blocks",), text=APART),
    "PixArtMS": Layout(("blocks",), text=APART, readable=False),
    "ErnieImageModel": Layout(("layers",), readable=False),
}
PADDED_BEFORE = ("Flux2",)  # ComfyUI pads their prompts in front
FACTORS = {"HunyuanImage21": 32, "Wan22": 16, "ChromaRadiance": 1}  # where a format has no spacial_downscale_ratio
DISTILLED = ("FluxSchnell",)  # configurations of models whose networks do not tell


@dataclass(frozen=True)
class Family:
    """What the adapter knows of a model.

    Attributes:
        layout: Of its transformer; None for a UNet and for unknown networks.
        maps: See `DiffusionModel.maps`.
        distilled: See `DiffusionModel.distilled`.
    """

    layout: Layout | None
    maps: str
    distilled: bool

    @property
    def unet(self) -> bool:
        return self.layout is None and self.maps == "attention"


def family_of(model: BaseModel) -> Family:
    """The family of a model."""
    network = model.diffusion_model
    distilled = _guided_by_input(network) or type(model.model_config).__name__.endswith(DISTILLED)
    if hasattr(network, "input_blocks"):
        return Family(None, "attention", distilled)
    layout = next((LAYOUTS[kind.__name__] for kind in type(network).__mro__ if kind.__name__ in LAYOUTS), None)
    if layout is None:
        return Family(None, "none", distilled)
    if any(getattr(block, "flipped_img_txt", False) for block in getattr(network, layout.blocks[0])):
        layout = Layout(layout.blocks, AFTER, layout.aligned, layout.readable)  # HunyuanImage until 2025
    if type(model).__name__ in PADDED_BEFORE:
        layout = Layout(layout.blocks, layout.text, END, layout.readable)
    return Family(layout, "attention" if layout.readable else "features", distilled)


def factor_of(latent_format: LatentFormat) -> int:
    """Pixels per latent position and side."""
    return getattr(latent_format, "spacial_downscale_ratio", FACTORS.get(type(latent_format).__name__, 8))


def _guided_by_input(network: nn.Module) -> bool:
    """Whether guidance is an input of the network."""
    parameters: Any = getattr(network, "params", None)
    return bool(getattr(parameters, "guidance_embed", False))
