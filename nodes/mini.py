"""ONRW_LoadMini: the embedded model."""

from __future__ import annotations

from comfy_api.latest import io

from .adapter import mini, ordinary_tensors
from .sockets import CATEGORY

__all__ = ["LoadMiniNode"]


class LoadMiniNode(io.ComfyNode):
    """The model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_LoadMini",
            display_name="ONRW Load Mini",
            category=CATEGORY,
            description="The small diffusion model that comes with the pack: nothing to download, works with stock "
            "nodes "
            "(CLIP Text Encode, KSampler, VAE Encode, VAE Decode). It marks photos well and paints badly: for pictures "
            "use a checkpoint of your own.",
            inputs=[],
            outputs=[
                io.Model.Output("model", "model", tooltip="Diffusion model: 16 latent channels, v-prediction."),
                io.Clip.Output("clip", "clip", tooltip="Its text encoder, with a small vocabulary."),
                io.Vae.Output("vae", "vae", tooltip="Its autoencoder: 8 pixels per latent position, 16 channels."),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*mini.load())
