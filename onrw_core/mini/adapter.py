"""The embedded model as a `DiffusionModel`, an `Autoencoder` and a prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.fingerprint import fingerprint
from ..diffusion.model import AttentionControl, AttentionMaps, Autoencoder, Conditioning, DiffusionModel
from ..diffusion.ode import sigmas_from_alphas_cumprod
from .autoencoder import FACTOR, PatchAutoencoder
from .diffusion import alphas_cumprod
from .text import TextEncoder, Tokenizer
from .transformer import AttentionProbe
from .unet import UNet
from .weights import WEIGHTS, load_autoencoder, load_text, load_unet

__all__ = ["Mini", "MiniAutoencoder", "MiniModel", "load_mini"]


class MiniModel(DiffusionModel):
    """The UNet as a denoiser in sigma space (v-prediction)."""

    prediction = "v"

    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        self.name = f"mini-{fingerprint(unet.state_dict(), unet.config.to_dict())}"
        self.sigmas = sigmas_from_alphas_cumprod(alphas_cumprod())
        self._log_sigmas = self.sigmas.log()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The trained timestep nearest to a noise level in log sigma, as a 0-d float tensor."""
        return (self._log_sigmas - sigma.detach().float().cpu().log()).abs().argmin().float()

    def denoise(
        self, x: Tensor, sigma: Tensor, conditionings: Sequence[Conditioning], control: AttentionControl | None = None
    ) -> tuple[list[Tensor], AttentionMaps]:
        rows, count = x.shape[0], len(conditionings)
        dtype = self.unet.dtype
        variance = 1 + sigma.to(x.device, torch.float32) ** 2
        z = (x.float() / variance.sqrt()).to(dtype).repeat(count, 1, 1, 1)
        context = torch.cat([c.embeddings.to(x.device, dtype).expand(rows, -1, -1) for c in conditionings])
        probe = None if control is None else AttentionProbe(control, rows)
        timesteps = self.timestep(sigma).to(x.device).expand(rows * count)
        v = self.unet(z, timesteps, context, probe).float()
        scale = sigma.to(x.device, torch.float32) / variance.sqrt()
        x0 = [x.float() / variance - scale * part for part in v.chunk(count)]
        return x0, AttentionMaps() if probe is None else probe.maps


class MiniAutoencoder(Autoencoder):
    """The autoencoder; its latent has unit variance."""

    factor = FACTOR

    def __init__(self, module: PatchAutoencoder) -> None:
        self.module = module
        self.channels = module.config["latent_channels"]
        self.name = f"mini-vae-{fingerprint(module.state_dict(), module.config)}"

    def encode(self, images: Tensor) -> Tensor:
        return self.module.encode(images.to(self.module.latent_scale.dtype)).float()

    def decode(self, latents: Tensor) -> Tensor:
        return self.module.decode(latents.to(self.module.latent_scale.dtype)).float()


@dataclass(frozen=True)
class Mini:
    """All parts of the embedded model."""

    model: MiniModel
    autoencoder: MiniAutoencoder
    tokenizer: Tokenizer
    text: TextEncoder

    @torch.no_grad()
    def encode(self, text: str, word: str | None = None) -> Conditioning:
        """Encode a prompt; the empty one is the unconditional embedding.

        Args:
            text: Any text; words outside of the vocabulary share hashed embeddings, words past the 62nd are dropped.
            word: A word or phrase of the text, for the pseudo-mask.

        Raises:
            ValueError: `word` is not in the text.
        """
        tokens = self.tokenizer(text)
        ids = torch.tensor([tokens.ids], device=self.text.token.weight.device)
        return Conditioning(
            self.text(ids).float(), content=tokens.content(), word=tokens.of(word) if word is not None else None
        )


def load_mini(
    device: str | torch.device = "cpu", weights: Path | None = None, dtype: torch.dtype = torch.float32
) -> Mini:
    """Load the embedded model, frozen.

    Args:
        device: Device of all networks.
        weights: Folder of its weight files; by default those of the package.
        dtype: Precision of UNet and autoencoder; latents and images stay float32 outside.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a weight file does not match its checksum.
    """
    folder = WEIGHTS if weights is None else Path(weights)
    tokenizer, text = load_text(folder, device)
    return Mini(
        MiniModel(load_unet(folder, device).to(dtype)),
        MiniAutoencoder(load_autoencoder(folder, device).to(dtype)),
        tokenizer,
        text,
    )
