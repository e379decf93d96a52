"""Toy checkpoints, LoRA and ControlNet with random weights, in the file formats that ComfyUI's stock loaders take."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 1, 2),
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 64,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "adm_in_channels": None,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 4,
    "num_head_channels": -1,
}


MMDIT = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 64,
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 32,
    "num_patches": 1024,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
}


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights of unit gain, norms one, biases zero; returns the state dict."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            fan_in = weight[0].numel()
            values = torch.randn(weight.shape, generator=generator) * gain * fan_in**-0.5
        else:
            values = torch.ones(weight.shape) if name.endswith("weight") else torch.zeros(weight.shape)
        weight.data = values.to(weight.dtype)
    return module.state_dict()


def write_checkpoint(folder: Path, name: str, network: dict, vae: dict, clip: dict, clip_prefix: str) -> None:
    """Write checkpoints/`name`.safetensors, a file with network, VAE and text encoder."""
    checkpoint = {f"model.diffusion_model.{k}": v for k, v in network.items()}
    checkpoint |= {f"first_stage_model.{k}": v for k, v in vae.items()}
    checkpoint |= {k.replace("clip_l.", clip_prefix): v for k, v in clip.items()}
    halves = {k: v.half().contiguous() for k, v in checkpoint.items()}
    save_file(halves, folder / "checkpoints" / f"{name}.safetensors")


def write_models(folder: Path, clip_class: type) -> None:
    """Write checkpoints, loras/tiny.safetensors and controlnet/tiny.safetensors below `folder`.

    checkpoints/tiny.safetensors is a Stable Diffusion 1, checkpoints/tiny-flow.safetensors a Stable Diffusion 3. Needs
    ComfyUI importable. `clip_class` is the toy text encoder of the pack `tiny_models`.
    """
    import comfy.cldm.cldm
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit_module
    import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
    import comfy.ops
    import comfy.sd1_clip
    import comfy.taesd.taesd

    for name in ("checkpoints", "loras", "controlnet"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    operations = comfy.ops.disable_weight_init
    unet = randomise(openaimodel.UNetModel(**UNET, dtype=torch.float32, device="cpu", operations=operations), 1)
    vae = randomise(comfy.taesd.taesd.TAESD(latent_channels=4), 2)
    vae["vae_scale"], vae["vae_shift"] = torch.tensor(0.18215), torch.tensor(0.0)
    clip = randomise(clip_class(dtype=torch.float32), 3)
    write_checkpoint(folder, "tiny", unet, vae, clip, "cond_stage_model.")
    mmdit = mmdit_module.MMDiT(**MMDIT, dtype=torch.float32, device="cpu", operations=operations)
    mmdit.pos_embed.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(7))
    wide = randomise(comfy.taesd.taesd.TAESD(latent_channels=16), 8)
    wide["vae_scale"], wide["vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
    write_checkpoint(folder, "tiny-flow", randomise(mmdit, 6, gain=0.5), wide, clip, "text_encoders.clip_l.")

    generator = torch.Generator().manual_seed(4)
    lora = {}
    for key, weight in unet.items():
        if key.endswith("to_q.weight") or key.endswith("to_v.weight"):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_up.weight"] = torch.randn(len(weight), 2, generator=generator) * 0.3
            lora[f"{name}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.3
            lora[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(lora, folder / "loras" / "tiny.safetensors")

    config = {k: v for k, v in UNET.items() if k not in ("out_channels", "transformer_depth_output")}
    control = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, dtype=torch.float32, device="cpu", operations=operations
    )
    weights = {f"control_model.{k}": v.half().contiguous() for k, v in randomise(control, 5, gain=0.5).items()}
    save_file(weights, folder / "controlnet" / "tiny.safetensors")
