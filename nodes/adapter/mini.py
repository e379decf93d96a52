"""The embedded model as ComfyUI's MODEL, CLIP and VAE, for stock nodes and the nodes of the pack.

Its UNet has the structure of ComfyUI's `UNetModel`, so its weights are loaded into that class, and everything that
works on a UNet of ComfyUI (LoRA, patches, previews) works. The text encoder and the autoencoder are wrapped.
"""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...onrw_core.mini import Mini, load_mini
from ...onrw_core.mini.autoencoder import PatchAutoencoder
from ...onrw_core.mini.text import TextEncoder, Tokenizer
from ...onrw_core.mini.unet import UNet

__all__ = ["ONCE", "load"]

NAME = "mini"  # key of the text encoder in ComfyUI's token dictionaries
ONCE = "once"


def load() -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """The embedded model, with weights that are ordinary tensors on ComfyUI's offload devices."""
    with torch.inference_mode(False):
        mini = load_mini()
        network = mini.autoencoder.module
        return diffusion_model(mini.model.unet, network), text_encoder(mini), MiniVAE(network)


class MiniLatents(comfy.latent_formats.LatentFormat):
    """The format of latents of unit variance; the linear preview is the mean of each patch of the linear decoder."""

    scale_factor = 1.0

    def __init__(self, network: PatchAutoencoder | None = None) -> None:
        if network is None:
            return
        decoder = network.linear_decoder
        self.latent_channels = decoder.in_channels
        assert decoder.bias is not None
        colours = decoder.weight.detach().flatten(1).unflatten(0, (3, -1)).mean(1) / network.latent_scale
        self.latent_rgb_factors = colours.T.tolist()
        self.latent_rgb_factors_bias = decoder.bias.detach().unflatten(0, (3, -1)).mean(1).tolist()


class MiniConfig(comfy.supported_models_base.BASE):
    """The configuration that `BaseModel` needs: v-prediction on Stable Diffusion's schedule."""

    unet_extra_config: dict = {}
    latent_format = MiniLatents

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


def diffusion_model(unet: UNet, network: PatchAutoencoder) -> ModelPatcher:
    """ComfyUI's UNet with the embedded model's weights."""
    config = MiniConfig(unet.config.comfy())
    config.latent_format = MiniLatents(network)
    config.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    model = comfy.model_base.BaseModel(config, config.model_type({}), device=offload)
    model.diffusion_model.load_state_dict(unet.state_dict())
    return ModelPatcher(model.eval(), comfy.model_management.get_torch_device(), offload)


class MiniTokenizer:
    """The tokenizer of the embedded model, with ComfyUI's weights, ``(word:1.2)``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, tokenizer_options: dict | None = None, **options
    ) -> dict[str, list]:
        """One row of (token, weight), or (token, weight, word number from 1 on, 0 for no word).

        The text is repeated until the row is full, except with the tokenizer option "once".
        """
        parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
        words: list[str] = []
        weights: list[float] = []
        for segment, weight in parsed:
            found = self.tokenizer(comfy.sd1_clip.unescape_important(segment)).words
            words += found
            weights += [weight] * len(found)
        tokens = self.tokenizer(" ".join(words))
        row = [
            (token, weights[position] if position >= 0 else 1.0, position + 1)
            for token, position in zip(tokens.ids, tokens.positions, strict=True)
        ]
        if (tokenizer_options or {}).get(ONCE):
            row = row[: len(tokens.words) + 1]
        return {NAME: [row if return_word_ids else [entry[:2] for entry in row]]}

    def state_dict(self) -> dict:
        return {}


class MiniText(torch.nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):
    """The text encoder with the interface of ComfyUI's."""

    def __init__(self, encoder: TextEncoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.transformer = encoder
        self.blank = list(tokenizer("").ids)
        self.special_tokens: dict = {}
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict) -> None:
        """Does nothing: the encoder has no choice of layers."""

    def reset_clip_options(self) -> None:
        """Does nothing: the encoder has no choice of layers."""

    def gen_empty_tokens(self, special_tokens: dict, length: int) -> list[int]:
        return self.blank

    def encode(self, tokens: list[list[int]]) -> tuple[Tensor, None]:
        device = next(self.transformer.parameters()).device
        return self.transformer(torch.tensor(tokens, device=device)).float(), None

    def encode_token_weights(self, token_weight_pairs: dict[str, list]) -> tuple:
        return super().encode_token_weights(token_weight_pairs[NAME])


def text_encoder(mini: Mini) -> comfy.sd.CLIP:
    """The text encoder as a CLIP, for stock text nodes and Encode Prompt (Words)."""
    target = comfy.supported_models_base.ClipTarget(
        tokenizer=lambda **options: MiniTokenizer(mini.tokenizer),
        clip=lambda device, **options: MiniText(mini.text, mini.tokenizer).to(device),
    )
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32})


class MiniVAE(comfy.sd.VAE):
    """The embedded autoencoder as a VAE; its images are in [0, 1] without a mapping."""

    def __init__(self, network: PatchAutoencoder) -> None:
        # A pixel-space VAE has no weights: it sets every attribute that this version of ComfyUI knows to its default.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
        self.first_stage_model = network.eval()
        self.latent_channels = network.linear_decoder.in_channels
        self.downscale_ratio = self.upscale_ratio = 8
        self.process_input = lambda image: image
        # In place: newer versions of ComfyUI discard what it returns.
        self.process_output = lambda image: image.clamp_(0.0, 1.0)
        # About 64 values of float32 per pixel at most, at a quarter of the resolution and below.
        self.memory_used_encode = lambda shape, dtype: shape[2] * shape[3] * 256
        self.memory_used_decode = lambda shape, dtype: shape[2] * shape[3] * 64 * 256
        self.patcher = ModelPatcher(network, self.device, comfy.model_management.vae_offload_device())
