"""Tiny models with random weights of ComfyUI's own classes, one of each family, with VAE and prompts.

Everything is made in inference mode, as ComfyUI's loaders do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.model_base as base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models as configs
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor

CPU = torch.device("cpu")
WIDTH = 64  # of all prompts
TOKENS = 8
GAIN = 0.7
ASIDE = 0.1  # size of what prompts have beside their embeddings, so that null embeddings can make up for guidance

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 1, 2), "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": WIDTH, "adm_in_channels": None,
    "use_temporal_attention": False, "use_temporal_resblock": False, "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip
SDXL = {
    **UNET, "adm_in_channels": WIDTH + 1536, "num_classes": "sequential", "use_linear_in_transformer": True,
    "transformer_depth": [0, 1, 2], "transformer_depth_output": [0, 0, 1, 1, 2, 2],
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": WIDTH,
    "context_in_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {
    **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
    "axes_dim": [8, 8, 8, 8], "theta": 2000, "qkv_bias": False, "txt_ids_dims": [3], "global_modulation": True,
    "mlp_silu_act": True, "ops_bias": False, "ref_index_scale": 10.0, "default_ref_method": "index",
}  # fmt: skip
CHROMA = {
    **{key: FLUX[key] for key in ("patch_size", "context_in_dim", "hidden_size", "mlp_ratio", "num_heads", "depth")},
    **{key: FLUX[key] for key in ("depth_single_blocks", "axes_dim", "theta", "qkv_bias")}, "image_model": "chroma",
    "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 1,
    "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None,
    "context_in_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [16, 16], "theta": 256, "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": WIDTH,
    "pos_embed_scaling_factor": None, "pos_embed_max_size": 16, "num_patches": 256, "qk_norm": None,
    "x_block_self_attn_layers": [],
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}},
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 2, "n_refiner_layers": 1,
    "n_heads": 2, "n_kv_heads": 1, "multiple_of": 32, "qk_norm": True, "cap_feat_dim": WIDTH,
    "axes_dims": (16, 16, 16), "axes_lens": (300, 512, 512),
}  # fmt: skip
Z_IMAGE = {
    **LUMINA, "dim": 256, "n_heads": 4, "n_kv_heads": 4, "axes_dims": (16, 24, 24), "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 2,
    "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [WIDTH, WIDTH], "text_emb_dim": WIDTH,
    "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (8, 12, 12), "llama_layers": [0, 1],
}  # fmt: skip
AURA = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
    "global_conddim": 64, "cond_seq_dim": WIDTH, "max_seq": 256,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "in_dim": 16, "dim": 64, "ffn_dim": 128,
    "freq_dim": 64, "text_dim": WIDTH, "out_dim": 16, "num_heads": 2, "num_layers": 2,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "input_size": 128, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 2,
    "num_heads": 2, "caption_channels": WIDTH, "micro_condition": False, "pred_sigma": True, "pe_interpolation": 1.0,
}  # fmt: skip
HEADS = {"unet_extra_config": {"num_heads": 4, "num_head_channels": -1}}
CHANNELS = {"unet_extra_config": {"num_heads": -1, "num_head_channels": 16}}


@dataclass(frozen=True)
class Tiny:
    """A family's tiny model.

    Attributes:
        config: ComfyUI's configuration class, by name; a version may lack it.
        model: ComfyUI's model class, by name.
        network: The network's configuration.
        arguments: Further arguments of the model class.
        changes: Attributes of the configuration.
        sampling: Changes of its sampling settings.
        channels: Of its latents.
        factor: Pixels per latent position.
        video: Whether latents have a frame axis.
        options: Makes further options of its prompts from a random generator.
        pooled: Whether its prompts have a pooled embedding.
    """

    config: str
    model: str
    network: dict[str, Any]
    arguments: tuple = ()
    changes: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    channels: int = 16
    factor: int = 8
    video: bool = False
    options: Callable[[torch.Generator], dict[str, Any]] = lambda generator: {}
    pooled: bool = True


def _masked(generator: torch.Generator) -> dict[str, Any]:
    return {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long), "num_tokens": TOKENS}


def _llama(generator: torch.Generator) -> dict[str, Any]:
    return {"conditioning_llama3": torch.randn(1, 2, TOKENS, WIDTH, generator=generator) * ASIDE}


def _sizes(generator: torch.Generator) -> dict[str, Any]:
    sizes = torch.randint(256, 1024, (4,), generator=generator).tolist()
    return dict(zip(("width", "height", "target_width", "target_height"), sizes, strict=True))


EDM = {"sigma_data": 0.5, "sigma_max": 80.0, "sigma_min": 0.002}
EPS, V = base.ModelType.EPS, base.ModelType.V_PREDICTION
LINEAR = {**UNET, "use_linear_in_transformer": True}
FAMILIES = {
    "SD1.5": Tiny("SD15", "BaseModel", UNET, (EPS,), HEADS, channels=4),
    "SD2 (v)": Tiny("SD20", "BaseModel", LINEAR, (V,), CHANNELS, channels=4),
    "SDXL": Tiny("SDXL", "SDXL", SDXL, (EPS,), CHANNELS, channels=4, options=_sizes),
    "SDXL (v, zero SNR)": Tiny("SDXL", "SDXL", SDXL, (V,), CHANNELS, {"zsnr": True}, 4, options=_sizes),
    "SDXL (EDM)": Tiny(
        "SDXL",
        "SDXL",
        SDXL,
        (base.ModelType.EDM,),
        {**CHANNELS, "latent_format": comfy.latent_formats.SDXL_Playground_2_5},
        EDM,
        4,
        options=_sizes,
    ),
    "PixArt": Tiny("PixArtSigma", "PixArt", PIXART, channels=4, pooled=False),
    "SD3": Tiny("SD3", "SD3", SD3),
    "SD3.5": Tiny("SD3", "SD3", {**SD3, "qk_norm": "rms", "x_block_self_attn_layers": [0]}),
    "Flux": Tiny("Flux", "Flux", FLUX, options=lambda generator: {"guidance": 3.5}),
    "Schnell": Tiny("FluxSchnell", "Flux", {**FLUX, "guidance_embed": False}, (base.ModelType.FLOW,)),
    "Flux2": Tiny("Flux2", "Flux2", FLUX2, channels=128, factor=16, pooled=False),
    "Chroma": Tiny("Chroma", "Chroma", CHROMA, pooled=False),
    "Lumina2": Tiny("Lumina2", "Lumina2", LUMINA, options=_masked, pooled=False),
    "Z-Image": Tiny("ZImage", "Lumina2", Z_IMAGE, options=_masked, pooled=False),
    "AuraFlow": Tiny("AuraFlow", "AuraFlow", AURA, channels=4, pooled=False),
    "HiDream": Tiny("HiDream", "HiDream", HIDREAM, options=_llama),
    "Qwen-Image": Tiny("QwenImage", "QwenImage", QWEN, video=True, pooled=False),
    "HunyuanImage": Tiny("HunyuanImage21", "HunyuanImage21", HUNYUAN, channels=64, factor=32, pooled=False),
    "Wan": Tiny("WAN21_T2V", "WAN21", WAN, video=True, pooled=False),
}


def available() -> list[str]:
    """The families that this version of ComfyUI has."""
    return [name for name, tiny in FAMILIES.items() if hasattr(configs, tiny.config) and hasattr(base, tiny.model)]


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> None:
    """Weights of the given gain, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if weight.ndim > 1 and last != "gamma":
            values = torch.randn(weight.shape, generator=generator) * gain * weight[0].numel() ** -0.5
        else:
            values = torch.ones(weight.shape) if last in ("gamma", "weight", "scale") else torch.zeros(weight.shape)
        weight.data = values.to(weight.dtype)
    for name, buffer in module.named_buffers():
        if "pos_embed" in name:
            buffer.data = (torch.randn(buffer.shape, generator=generator) * 0.2).to(buffer.dtype)


def _known(network: dict[str, Any]) -> dict[str, Any]:
    """A network's configuration without what this version of ComfyUI does not know."""
    import comfy.ldm.chroma.model as chroma
    import comfy.ldm.flux.model as flux
    import comfy.ldm.hunyuan_video.model as hunyuan

    strict = {
        "flux": flux.FluxParams,
        "flux2": flux.FluxParams,
        "chroma": chroma.ChromaParams,
        "hunyuan_video": hunyuan.HunyuanVideoParams,
    }
    parameters = strict.get(network.get("image_model", ""))
    if parameters is None:
        return dict(network)
    known = {"image_model", *(f.name for f in fields(parameters))}
    return {key: value for key, value in network.items() if key in known}


def model(name: str, dtype: torch.dtype = torch.float32, seed: int = 1) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of the family."""
    tiny = FAMILIES[name]
    with torch.inference_mode():
        changes = {"unet_extra_config": {}, "unet_config": {}, **tiny.changes}
        config = type(f"Tiny{tiny.config}", (getattr(configs, tiny.config),), changes)(_known(tiny.network))
        config.sampling_settings = {**config.sampling_settings, **tiny.sampling}
        if isinstance(config.latent_format, type):
            config.latent_format = config.latent_format()
        computed = torch.float64 if dtype.itemsize == 1 else None  # 8 bits are for storage
        config.set_inference_dtype(dtype, computed)
        made = getattr(base, tiny.model)(config, *tiny.arguments, device=CPU).eval()
        randomise(made.diffusion_model, seed, GAIN)
        return comfy.model_patcher.ModelPatcher(made, load_device=CPU, offload_device=CPU)


def vae(name: str, seed: int = 2) -> comfy.sd.VAE:
    """A small VAE for the family's latents."""
    tiny = FAMILIES[name]
    with torch.inference_mode():
        levels = int(math.log2(tiny.factor))
        details = {
            "double_z": True, "z_channels": tiny.channels, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1] * levels + [2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        }  # fmt: skip
        network = AutoencoderKL(ddconfig=details, embed_dim=tiny.channels)
        randomise(network, seed)
        parameters = {"params": {"ddconfig": details, "embed_dim": tiny.channels}}
        made = comfy.sd.VAE(sd=network.state_dict(), config=parameters, dtype=torch.float32)
        made.latent_channels = tiny.channels
        made.downscale_ratio = made.upscale_ratio = tiny.factor
        if tiny.video:
            _video(made, seed)
        return made


def _video(made: comfy.sd.VAE, seed: int) -> None:
    """Make a VAE what ComfyUI's loader makes of Wan 2.1's, with a smaller network."""
    network = comfy.ldm.wan.vae.WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    ).eval()
    randomise(network, seed)
    made.first_stage_model = network
    made.patcher = comfy.model_patcher.ModelPatcher(network, load_device=made.device, offload_device=made.device)
    made.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
    made.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
    made.upscale_index_formula = made.downscale_index_formula = (4, 8, 8)
    made.latent_dim = 3


def conditioning(name: str, seed: int, tokens: int = TOKENS) -> list:
    """A CONDITIONING as the family's text encoder makes it."""
    tiny, generator = FAMILIES[name], torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        embeddings = torch.randn(1, tokens, WIDTH, generator=generator)
        pooled = torch.randn(1, WIDTH, generator=generator) * ASIDE if tiny.pooled else None
        return [[embeddings, {"pooled_output": pooled, **tiny.options(generator)}]]


def latent(name: str, side: int = 16) -> Tensor:
    """A smooth latent of unit variance as the core has it, (1, C, side, side)."""
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(1, FAMILIES[name].channels, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, side, mode="bicubic")
    return fine / fine.std()
