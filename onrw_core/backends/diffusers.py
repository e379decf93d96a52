"""A diffusers StableDiffusionPipeline (SD1 and SD2 layout, eps and v prediction) as a model of this library.

The UNet sees the unit-variance latent ``z = x / sqrt(1 + sigma^2)`` and the trained timestep nearest to sigma. Its
output becomes ``x0_hat = x - sigma * eps``, or ``x0_hat = x / (1 + sigma^2) - v * sigma / sqrt(1 + sigma^2)``
(Salimans & Ho 2022), in float32 whatever the precision of the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..fingerprint import fingerprint
from ..model import AttentionControl, AttentionMaps, Autoencoder, Conditioning, DiffusionModel
from ..ode import latent_scale, sigmas_from_alphas_cumprod
from ..recompute import outermost, recomputed
from .diffusers_attention import controlled

__all__ = ["DiffusersAutoencoder", "DiffusersModel", "DiffusersPrompts", "from_pipeline"]

log = logging.getLogger(__name__)

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
UNCONDITIONAL_WORDS = ""
UNET_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")
VAE_BLOCKS = ("ResnetBlock2D", "Attention", "Upsample2D")


class DiffusersModel(DiffusionModel):
    """A UNet2DConditionModel.

    Args:
        unet: The network; its weights are frozen.
        alphas_cumprod: Of the noise schedule it was trained with, (T,).
        prediction: "eps" or "v".
        name: By default the family and a fingerprint of the weights.

    Raises:
        ValueError: The network needs more than latent, timestep and token embeddings (SDXL, inpainting), or
            `prediction` is unknown.
    """

    def __init__(self, unet: nn.Module, alphas_cumprod: Tensor, prediction: str = "eps", name: str | None = None):
        if prediction not in PREDICTIONS.values():
            raise ValueError(f'prediction is {prediction!r}; choose "eps" or "v"')
        config = unet.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"the UNet takes {config.in_channels} channels and gives {config.out_channels} (inpainting?); "
                "use a text-to-image checkpoint"
            )
        if config.addition_embed_type is not None or config.class_embed_type is not None:
            raise ValueError("the UNet wants more than a prompt (SDXL?); use a checkpoint of the SD1 or SD2 layout")
        self.unet = unet.requires_grad_(False).eval()
        self.prediction = prediction
        self.sigmas = sigmas_from_alphas_cumprod(alphas_cumprod)
        self.name = name or f"diffusers-{prediction}-{fingerprint(unet.state_dict(), config)}"
        self._log_sigmas = self.sigmas.log()
        self._recomputing = False

    def timestep(self, sigma: Tensor | float) -> int:
        """The trained timestep whose sigma is nearest, in log sigma."""
        return int((self._log_sigmas - torch.as_tensor(sigma).float().cpu().log()).abs().argmin())

    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        """See `DiffusionModel.denoise`. Conditionings of one length run as one batch, others one after the other."""
        if len({conditioning.embeddings.shape[1] for conditioning in conditionings}) > 1:
            first, maps = self.denoise(x, sigma, conditionings[:1], control)
            return first + [self.denoise(x, sigma, [c])[0][0] for c in conditionings[1:]], maps
        batch, count, dtype = len(x), len(conditionings), self.unet.dtype
        scale = latent_scale(sigma).to(x)
        z = (x / scale).to(dtype).repeat(count, 1, 1, 1)
        embeddings = torch.cat([c.embeddings.to(z).expand(batch, -1, -1) for c in conditionings])
        probes = partial(controlled, self.unet, control, batch, tuple(x.shape[-2:]))
        blocks = outermost(self.unet, UNET_BLOCKS) if self._recomputing else ()
        with probes() as maps, recomputed(blocks, probes):
            raw = self.unet(z, self.timestep(sigma), encoder_hidden_states=embeddings, return_dict=False)[0]
        raw = raw.to(x.dtype).chunk(count)
        if self.prediction == "v":
            return [x / scale**2 - v * (sigma / scale) for v in raw], maps
        return [x - sigma * eps for eps in raw], maps

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """See `DiffusionModel.recomputing`."""
        before, self._recomputing = self._recomputing, True
        try:
            yield
        finally:
            self._recomputing = before


class DiffusersAutoencoder(Autoencoder):
    """An AutoencoderKL; encoding takes the mean, so that it is deterministic.

    Args:
        vae: The network; its weights are frozen.
        name: By default the family and a fingerprint of the weights.
    """

    def __init__(self, vae: nn.Module, name: str | None = None):
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
        """Block by block; the last ones, at full size, have the most activations."""
        with recomputed(outermost(self.vae, VAE_BLOCKS)):
            return self.decode(latents)


class DiffusersPrompts:
    """Text to conditioning, by the pipeline's CLIP tokenizer and text encoder."""

    def __init__(self, tokenizer: Any, text_encoder: nn.Module):
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, text: str = UNCONDITIONAL_WORDS, word: str | None = None) -> Conditioning:
        """Encode a prompt; the empty one is the null embedding.

        Args:
            text: The prompt. What exceeds the model's length is cut off, with a warning.
            word: A word or phrase of the prompt, for the pseudo-mask.

        Returns:
            Embeddings (1, T, C) in float32, with the places of the content tokens and of the word.

        Raises:
            ValueError: The prompt does not hold the word.
        """
        length = self.tokenizer.model_max_length
        words = self.tokenizer(text, add_special_tokens=False).input_ids
        room = length - 2  # begin and end
        if len(words) > room:
            log.warning("the prompt has %d tokens, the model reads the first %d of them", len(words), room)
            words = words[:room]
        tokens = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        device = next(self.text_encoder.parameters()).device
        embeddings = self.text_encoder(tokens.input_ids.to(device))[0].float()
        content = tuple(range(1, 1 + len(words)))
        return Conditioning(embeddings, content=content, word=self._places(text, words, word) if word else None)

    def _places(self, text: str, words: list[int], word: str) -> tuple[int, ...]:
        wanted = self.tokenizer(word, add_special_tokens=False).input_ids
        size = len(wanted)
        starts = [i for i in range(len(words) - size + 1) if size and words[i : i + size] == wanted]
        if not starts:
            raise ValueError(f"the prompt {text!r} does not hold the word {word!r}; choose one that it holds")
        return tuple(sorted({1 + start + offset for start in starts for offset in range(size)}))


def from_pipeline(
    pipeline: Any,
) -> tuple[DiffusersModel, DiffusersAutoencoder, Callable[..., Conditioning]]:
    """The parts of a StableDiffusionPipeline; its weights are frozen from now on.

    Returns:
        The model, its autoencoder, and ``encode(text="", word=None) -> Conditioning``.

    Raises:
        ValueError: The pipeline's scheduler predicts neither eps nor v, or its UNet is not of the SD1 or SD2 layout.
    """
    scheduler = pipeline.scheduler
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
    prompts = DiffusersPrompts(pipeline.tokenizer, pipeline.text_encoder)
    return model, DiffusersAutoencoder(pipeline.vae), prompts
