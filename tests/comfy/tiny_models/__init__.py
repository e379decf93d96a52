"""A custom node pack for tests only: makes ComfyUI's stock loaders recognise Stable Diffusion 1 and 3 of toy size."""

import comfy.latent_formats
import comfy.supported_models
from comfy.supported_models_base import ClipTarget

CLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 64,
}


class TinySD1(comfy.supported_models.SD15):
    """Stable Diffusion 1 with 32 channels and a context of 64."""

    unet_config = {
        "context_dim": 64,
        "model_channels": 32,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    def clip_target(self, state_dict=None):
        target = ClipTarget(comfy.sd1_clip.SD1Tokenizer, TinyClip)
        return target


class TinySD3(comfy.supported_models.SD3):
    """Stable Diffusion 3 with a width of 128, and one CLIP of 64."""

    unet_config = {
        **comfy.supported_models.SD3.unet_config,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    }

    def clip_target(self, state_dict=None):
        return ClipTarget(comfy.sd1_clip.SD1Tokenizer, TinyClip)


class TinyClip(comfy.sd1_clip.SD1ClipModel):
    """CLIP-L's text tower with two layers of 64 channels."""

    def __init__(self, device="cpu", dtype=None, model_options=None, **kwargs):
        options = {**(model_options or {}), "clip_l_model_config": CLIP}
        super().__init__(device=device, dtype=dtype, model_options=options, **kwargs)


for tiny in (TinySD1, TinySD3):
    if tiny.__name__ not in [model.__name__ for model in comfy.supported_models.models]:
        comfy.supported_models.models.insert(0, tiny)

NODE_CLASS_MAPPINGS = {}
