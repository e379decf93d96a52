"""The weights of a diffusers pipeline under the names of the original checkpoints, as in the files that users have.

SD1 and SD2 (`ldm`), SDXL (`generative-models`) and SD3 (`sd3-ref`): UNet or MMDiT, VAE, and text encoders in the layout
of transformers or of open_clip.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = {
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
MMDIT = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
MMDIT_BLOCK = {
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
QKV = {
    "attn.to_{}": "x_block.attn.qkv",
    "attn.add_{}_proj": "context_block.attn.qkv",
    "attn2.to_{}": "x_block.attn2.qkv",
}


def checkpoint_of(pipeline) -> dict[str, Tensor]:
    """The state dict of the single file of a pipeline of diffusers (SD1, SD2, SDXL, SD3)."""
    kind, found = type(pipeline).__name__, {}
    if kind == "StableDiffusion3Pipeline":
        found |= _prefixed("model.diffusion_model.", _mmdit(pipeline.transformer))
        for letter, encoder in (("l", pipeline.text_encoder), ("g", pipeline.text_encoder_2)):
            found |= _prefixed(f"text_encoders.clip_{letter}.transformer.", _clip(encoder))
    else:
        found |= _prefixed("model.diffusion_model.", _unet(pipeline.unet))
    if kind == "StableDiffusionXLPipeline":
        found |= _prefixed("conditioner.embedders.0.transformer.", _clip(pipeline.text_encoder))
        found |= _prefixed("conditioner.embedders.1.model.", _open_clip(pipeline.text_encoder_2))
    elif kind == "StableDiffusionPipeline" and pipeline.unet.config.use_linear_projection:
        found |= _prefixed("cond_stage_model.model.", _open_clip(pipeline.text_encoder))  # SD2
    elif kind == "StableDiffusionPipeline":
        found |= _prefixed("cond_stage_model.transformer.", _clip(pipeline.text_encoder))
    found |= _prefixed("first_stage_model.", _vae(pipeline.vae))
    return {name: weight.detach().clone().contiguous() for name, weight in found.items()}


def _prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in weights.items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", name)
    return name


def _unet(unet: nn.Module) -> dict[str, Tensor]:
    layers, found = unet.config.layers_per_block, {}
    for name, weight in unet.state_dict().items():
        part, _, rest = name.partition(".")
        if part in ("down_blocks", "up_blocks"):
            block, kind, index, rest = rest.split(".", 3)
            down = part == "down_blocks"
            number = int(block) * (layers + 1) + (1 if down else 0)
            if kind in ("downsamplers", "upsamplers"):
                number += layers
                attention = hasattr(getattr(unet, part)[int(block)], "attentions")
                rest = rest.replace("conv", "0.op" if down else f"{2 if attention else 1}.conv")
            else:
                number += int(index)
                rest = f"0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"1.{rest}"
            name = f"{'input' if down else 'output'}_blocks.{number}.{rest}"
        elif part == "mid_block":
            kind, index, rest = rest.split(".", 2)
            place, rest = (2 * int(index), _renamed(rest, RESNET)) if kind == "resnets" else (1, rest)
            name = f"middle_block.{place}.{rest}"
        else:
            name = _renamed(name, ENDS)
        found[name] = weight
    return found


def _vae(vae: nn.Module) -> dict[str, Tensor]:
    last, found = len(vae.config.block_out_channels) - 1, {}
    for name, weight in vae.state_dict().items():
        name = _renamed(name, VAE)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        if ".attn_1." in name and weight.ndim == 2:
            weight = weight[:, :, None, None]  # convolutions there
        found[name] = weight
    return found


def _clip(encoder: nn.Module) -> dict[str, Tensor]:
    """Under the names of transformers until its version 5."""
    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    return {name if name == "text_projection.weight" else f"text_model.{name}": w for name, w in weights.items()}


def _open_clip(encoder: nn.Module) -> dict[str, Tensor]:
    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    width = weights["embeddings.position_embedding.weight"].shape[1]
    found = {"positional_embedding": weights.pop("embeddings.position_embedding.weight")}
    found["text_projection"] = weights.pop("text_projection.weight", torch.eye(width)).T
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        layer, kind = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name).groups()
        found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found | {_renamed(name, OPEN_CLIP): weight for name, weight in weights.items() if "position_ids" not in name}


def _mmdit(transformer: nn.Module) -> dict[str, Tensor]:
    weights, found = dict(transformer.state_dict()), {}
    found["pos_embed"] = weights.pop("pos_embed.pos_embed")
    last = transformer.config.num_layers - 1
    for layer in range(last + 1):
        for old, new in QKV.items():
            for kind in ("weight", "bias"):
                names = [f"transformer_blocks.{layer}.{old.format(letter)}.{kind}" for letter in "qkv"]
                if names[0] in weights:
                    found[f"joint_blocks.{layer}.{new}.{kind}"] = torch.cat([weights.pop(name) for name in names])
    for name, weight in weights.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.*)\.(\w+)$", name)
        if block:
            number, rest, kind = block.groups()
            swapped = int(number) == last and rest == "norm1_context.linear"
            name = f"joint_blocks.{number}.{_renamed(rest, MMDIT_BLOCK)}.{kind}"
        else:
            swapped = name.startswith("norm_out.")
            name = _renamed(name, MMDIT)
        found[name] = torch.cat(weight.chunk(2)[::-1]) if swapped else weight  # shift first, then scale
    return found
