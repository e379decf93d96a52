"""A diffusers pipeline of the SD1, SD2, SDXL or SD3 layout as a model of this library.

A UNet sees the unit-variance latent ``z = x / sqrt(1 + sigma^2)`` and the trained timestep nearest to sigma. Its
output becomes ``x0_hat = x - sigma * eps``, or ``x0_hat = x / (1 + sigma^2) - v * sigma / sqrt(1 + sigma^2)``
(Salimans & Ho 2022), in float32 for any precision of the weights. SD3's transformer predicts the velocity of a flow,
which is shown in the eps form (see `ode`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checkpointing import outermost, recomputed
from ..fingerprint import fingerprint
from ..model import AttentionControl, AttentionMaps, Autoencoder, Conditioning, DiffusionModel
from ..ode import latent_scale, sigmas_from_alphas_cumprod
from .diffusers_attention import controlled

__all__ = ["DiffusersAutoencoder", "DiffusersModel", "DiffusersPrompts", "from_pipeline"]

log = logging.getLogger(__name__)

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
UNCONDITIONAL_WORDS = ""
SIZES = "text_time"
"""SDXL's further conditioning: the pooled embedding and the image's sizes."""
HIGHEST_LEVEL = 0.9999  # of a flow; sigma is infinite at 1
TIMESTEPS = 1000
T5_LENGTH = 256
"""Tokens of SD3's T5 embeddings, as its pipeline has them."""
VAE_BLOCKS = ("ResnetBlock2D", "Attention", "Upsample2D")


class DiffusersModel(DiffusionModel):
    """A UNet2DConditionModel.

    Args:
        unet: The network; its weights are frozen.
        alphas_cumprod: Noise schedule of the training, (T,).
        prediction: "eps" or "v".
        name: Default: the family and a fingerprint of the weights.

    Raises:
        ValueError: The network needs more than latent, timestep, prompt and sizes (inpainting, adapters), or
            `prediction` is unknown.
    """

    blocks: tuple[str, ...] = ("ResnetBlock2D", "BasicTransformerBlock")

    def __init__(self, unet: Any, alphas_cumprod: Tensor, prediction: str = "eps", name: str | None = None):
        if prediction not in PREDICTIONS.values():
            raise ValueError(f'prediction is {prediction!r}; choose "eps" or "v"')
        config = unet.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"the UNet has {config.in_channels} input and {config.out_channels} output channels (inpainting?); "
                "use a text-to-image checkpoint"
            )
        if config.addition_embed_type not in (None, SIZES) or config.class_embed_type is not None:
            raise ValueError(
                "the UNet needs more conditioning than a prompt; use a checkpoint of the SD1, SD2 or SDXL layout"
            )
        self.unet = unet.requires_grad_(False).eval()
        self.prediction = prediction
        self.sigmas = sigmas_from_alphas_cumprod(alphas_cumprod)
        self.name = name or f"diffusers-{prediction}-{fingerprint(unet.state_dict(), config)}"
        self._log_sigmas = self.sigmas.log()

    def timestep(self, sigma: Tensor | float) -> int:
        """The trained timestep whose sigma is nearest, in log sigma."""
        return int((self._log_sigmas - torch.as_tensor(sigma).float().cpu().log()).abs().argmin())

    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        """See `DiffusionModel.denoise`. Conditionings of equal length run as one batch, others one after another."""
        if len({conditioning.embeddings.shape[1] for conditioning in conditionings}) > 1:
            first, maps = self.denoise(x, sigma, conditionings[:1], control)
            return first + [self.denoise(x, sigma, [c])[0][0] for c in conditionings[1:]], maps
        probes = partial(controlled, self.unet, control, len(x), (x.shape[-2], x.shape[-1]))
        blocks = outermost(self.unet, self.blocks) if self._recomputing else ()
        with probes() as maps, recomputed(blocks, probes):
            return self._denoised(x, torch.as_tensor(sigma).to(x), conditionings), maps

    def _denoised(self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning]) -> list[Tensor]:
        """x0_hat under each conditioning."""
        scale = latent_scale(sigma)
        further = {}
        if self.unet.config.addition_embed_type == SIZES:
            height, width = (side * self.factor for side in x.shape[-2:])
            sizes = x.new_tensor([[height, width, 0, 0, height, width]])  # original, crop, target
            pooled = self._batched([c.pooled for c in conditionings], len(x))
            further["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
        z, embeddings = self._inputs(x / scale, conditionings)
        timestep = self.timestep(sigma)
        raw = self.unet(z, timestep, encoder_hidden_states=embeddings, return_dict=False, **further)[0]
        predictions = raw.to(x.dtype).chunk(len(conditionings))
        if self.prediction == "v":
            return [x / scale**2 - v * (sigma / scale) for v in predictions]
        return [x - sigma * eps for eps in predictions]

    def _inputs(self, z: Tensor, conditionings: Sequence[Conditioning]) -> tuple[Tensor, Tensor]:
        """A latent for each conditioning, and the embeddings, in the network's precision."""
        latents = z.to(self.unet.dtype).repeat(len(conditionings), 1, 1, 1)
        return latents, self._batched([c.embeddings for c in conditionings], len(z))

    def _batched(self, parts: Sequence[Tensor | None], rows: int) -> Tensor:
        """Parts of the conditionings, one after another, each for `rows` latents."""
        if any(part is None for part in parts):
            raise ValueError("this model needs pooled embeddings; encode the prompt with its own encoders")
        weights = next(self.unet.parameters())
        return torch.cat([part.to(weights).expand(rows, *part.shape[1:]) for part in parts if part is not None])


class DiffusersFlow(DiffusersModel):
    """An SD3Transformer2DModel.

    Args:
        transformer: The network; its weights are frozen.
        levels: Noise levels of the training in (0, 1], (T,).
        name: Default: the family and a fingerprint of the weights.
    """

    blocks = ("JointTransformerBlock",)

    def __init__(self, transformer: Any, levels: Tensor, name: str | None = None):
        self.unet = transformer.requires_grad_(False).eval()
        levels = levels.detach().double().cpu().sort().values
        levels = levels[levels < HIGHEST_LEVEL]
        self.sigmas = (levels / (1 - levels)).float()
        self.name = name or f"diffusers-flow-{fingerprint(transformer.state_dict(), transformer.config)}"

    def _denoised(self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning]) -> list[Tensor]:
        level = sigma / (1 + sigma)
        y = x / (1 + sigma)
        z, embeddings = self._inputs(y, conditionings)
        pooled = self._batched([c.pooled for c in conditionings], len(x))
        timesteps = (level * TIMESTEPS).to(z).expand(len(z))
        raw = self.unet(z, embeddings, pooled, timesteps, return_dict=False)[0]
        return [y - level * velocity for velocity in raw.to(x.dtype).chunk(len(conditionings))]


class DiffusersAutoencoder(Autoencoder):
    """An AutoencoderKL; encoding returns the mean, so that it is deterministic.

    Args:
        vae: The network; its weights are frozen.
        name: Default: the family and a fingerprint of the weights.
    """

    def __init__(self, vae: Any, name: str | None = None):
        self.vae = vae.requires_grad_(False).eval()
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = vae.config.latent_channels
        self.name = name or f"diffusers-kl-{fingerprint(vae.state_dict(), vae.config)}"
        self._scale = vae.config.scaling_factor
        self._shift = getattr(vae.config, "shift_factor", None) or 0.0

    def encode(self, images: Tensor) -> Tensor:
        """See `Autoencoder.encode`.

        Raises:
            ValueError: A side is no multiple of `factor`.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"the image is {width}x{height}; crop or resize it to multiples of {self.factor}")
        mean = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist.mode()
        return (mean.float() - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        z = (latents / self._scale + self._shift).to(self.vae.dtype)
        return self.vae.decode(z, return_dict=False)[0].float() / 2 + 0.5

    def decode_checkpointed(self, latents: Tensor) -> Tensor:
        """Recomputed block by block; the last blocks, at full size, have the most activations."""
        with recomputed(outermost(self.vae, VAE_BLOCKS)):
            return self.decode(latents)


class DiffusersPrompts:
    """Text to conditioning, by a pipeline's tokenizers and text encoders.

    Args:
        encode: A text's embeddings (1, T, C) and pooled embedding (1, P) or None.
        tokenizers: Tokenizer, number of its tokens with begin and end, number of tokens that it begins with, and index
            of its first token among the embeddings.
    """

    def __init__(
        self,
        encode: Callable[[str], tuple[Tensor, Tensor | None]],
        tokenizers: Sequence[tuple[Any, int, int, int]],
    ):
        self.encode = encode
        self.tokenizers = tokenizers

    @torch.no_grad()
    def __call__(self, text: str = UNCONDITIONAL_WORDS, word: str | None = None) -> Conditioning:
        """Encode a prompt; the empty one is the null embedding.

        Args:
            text: The prompt. It is cut to the model's length, with a warning.
            word: A word or phrase of the prompt, for the pseudo-mask.

        Returns:
            Embeddings (1, T, C) in float32, with the indices of the content tokens and of the word.

        Raises:
            ValueError: The prompt does not contain the word.
        """
        content: list[int] = []
        places: list[int] = []
        for tokenizer, length, begin, first in self.tokenizers:
            words = tokenizer(text, add_special_tokens=False).input_ids
            room = length - begin - 1
            if len(words) > room:
                log.warning("the prompt has %d tokens, the model reads the first %d of them", len(words), room)
                words = words[:room]
            content += range(first + begin, first + begin + len(words))
            wanted = tokenizer(word, add_special_tokens=False).input_ids if word else []
            size = len(wanted)
            starts = [i for i in range(len(words) - size + 1) if size and words[i : i + size] == wanted]
            places += sorted({first + begin + start + offset for start in starts for offset in range(size)})
        if word and not places:
            raise ValueError(f"the prompt {text!r} does not contain the word {word!r}; choose one of its words")
        embeddings, pooled = self.encode(text)
        return Conditioning(
            embeddings.float(),
            pooled=None if pooled is None else pooled.float(),
            content=tuple(content),
            word=tuple(places) if word else None,
        )


def from_pipeline(
    pipeline: Any,
) -> tuple[DiffusersModel, DiffusersAutoencoder, Callable[..., Conditioning]]:
    """The parts of a pipeline of the SD1, SD2, SDXL or SD3 layout; its weights are frozen from now on.

    Returns:
        The model, its autoencoder, and ``encode(text="", word=None) -> Conditioning``.

    Raises:
        ValueError: The scheduler predicts neither eps, v nor a flow, or the UNet is of another layout.
    """
    scheduler = pipeline.scheduler
    autoencoder = DiffusersAutoencoder(pipeline.vae)
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.requires_grad_(False).eval()
    if getattr(pipeline, "transformer", None) is not None:
        flow = DiffusersFlow(pipeline.transformer, scheduler.sigmas[scheduler.sigmas > 0])
        return flow, autoencoder, _prompts(pipeline)
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"the scheduler predicts {prediction!r}; use a checkpoint that predicts epsilon or v_prediction"
        )
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod; give the pipeline a DDIMScheduler made from its config"
        )
    model = DiffusersModel(pipeline.unet, scheduler.alphas_cumprod, PREDICTIONS[prediction])
    model.factor = autoencoder.factor
    return model, autoencoder, _prompts(pipeline)


def _prompts(pipeline: Any) -> DiffusersPrompts:
    """The text encoders of a pipeline, by its own `encode_prompt`."""
    clip = pipeline.tokenizer
    tokenizers = [(clip, clip.model_max_length, 1, 0)]
    options: dict[str, Any] = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    if getattr(pipeline, "tokenizer_3", None) is not None and pipeline.text_encoder_3 is not None:
        tokenizers.append((pipeline.tokenizer_3, T5_LENGTH, 0, clip.model_max_length))
        options["max_sequence_length"] = T5_LENGTH
    zeros = pipeline.config.get("force_zeros_for_empty_prompt", False)  # SDXL

    def encode(text: str) -> tuple[Tensor, Tensor | None]:
        further = {f"prompt_{n}": None for n in (2, 3) if hasattr(pipeline, f"tokenizer_{n}")}
        found = pipeline.encode_prompt(text, **further, device=pipeline.device, **options)
        embeddings, pooled = found[0], found[2] if len(found) > 2 else None
        if zeros and not text and pooled is not None:
            embeddings, pooled = torch.zeros_like(embeddings), torch.zeros_like(pooled)
        return embeddings, pooled

    return DiffusersPrompts(encode, tokenizers)
