"""ONRW_LoadMini: loads the embedded model."""

from __future__ import annotations

from comfy_api.latest import io

from .adapter import mini, ordinary_tensors
from .schemas import schema
from .sockets import STAGES

__all__ = ["LoadMiniNode"]


class LoadMiniNode(io.ComfyNode):
    """Loads the diffusion model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_LoadMini",
            display_name="Load Embedded Model",
            search_aliases=["embedded model", "small model"],
            category=STAGES,
            description="Loads the small diffusion model that comes with the pack, to mark photos with the stages "
            "and with stock nodes.",
            inputs=[],
            outputs=[
                io.Model.Output("model", "model", tooltip="Diffusion model: 16 latent channels, v-prediction."),
                io.Clip.Output("clip", "clip", tooltip="The text encoder of the model, with a small vocabulary."),
                io.Vae.Output(
                    "vae", "vae", tooltip="The autoencoder of the model: 8 pixels per latent position, 16 channels."
                ),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*mini.load())
