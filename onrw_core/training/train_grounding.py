"""Grounding of the embedded model's cross-attention: the word of an object is trained to attend to the object.

Denoising alone does not determine where the attention to a word lies; in some heads the ground attends to the word of
the object. As in TokenCompose (Wang et al., CVPR 2024), the attention A of each head to the tokens of an object is
trained to lie in its mask,

    mean over layers, heads and photos of (1 - sum_inside A / sum A)^2,

here with masks from plain grounds (see :mod:`.segmentation`). Only the cross-attention is trained, and the network
before this training is the teacher of its output, on these and on other photos and also without a caption, so that
samples and inversions do not change. Every random draw of step n comes from (seed, n).
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.fingerprint import fingerprint
from ..diffusion.model import AttentionControl, AttentionMaps
from ..mini.autoencoder import FACTOR, PatchAutoencoder
from ..mini.diffusion import alphas_cumprod, noised
from ..mini.text import TextEncoder, Tokenizer
from ..mini.transformer import AttentionProbe
from ..mini.unet import UNet
from ..mini.weights import UNET_FILE, export_module
from .data import HELD_OUT_EVERY, PhotoSet
from .latents import WINDOW_PART, encoded_windows
from .loop import Budget, TrainingLog, descend, save_atomic, step_generator, step_rng
from .segmentation import object_mask
from .train_unet import attention_kernel, caption_ids, drawn_timesteps, dropped

__all__ = ["GroundedPhotos", "attention_outside", "cross_attention_parameters", "object_words", "train_grounding"]

log = logging.getLogger(__name__)
LEARNING_RATE = 5e-4
WARMUP_STEPS = 20
TEACHER_WEIGHT = 5.0
GRADIENT_LIMIT = 1.0
SIDE = 32  # latent positions of a window
MASK_SIDE = 64
LEAST_ATTENTION = 1e-6  # of a head to all the object's tokens, from all positions together
GROUNDED, OTHERS = 4, 2  # windows of a step
WINDOWS = 4  # of each photo: its whole square, and parts of it
COMMON_WORD = 0.15  # of the captions: words in more of them name no object
MOST_WORDS = 2  # that name objects; a longer caption is about several things
CHECK_EVERY = 100
CHECK_TIMESTEPS = (100, 400, 700)


def object_words(captions: list[str]) -> list[tuple[str, ...]]:
    """The words of each caption that name what is in it: those that few captions share, if there are one or two."""
    words = [tuple(dict.fromkeys(Tokenizer(())(caption).words)) for caption in captions]
    counts = Counter(word for some in words for word in some)
    rare = [tuple(word for word in some if counts[word] <= COMMON_WORD * len(captions)) for some in words]
    return [some if len(some) <= MOST_WORDS else () for some in rare]


@dataclass
class GroundedPhotos:
    """Windows of photos with objects on plain grounds.

    Attributes:
        latents: (N,WINDOWS,C,SIDE,SIDE).
        masks: (N,WINDOWS,1,SIDE,SIDE), the object's part of each latent position.
        ids: Token ids (N,64).
        tokens: (N,64), 1 at the tokens of the object's words.
    """

    latents: Tensor
    masks: Tensor
    ids: Tensor
    tokens: Tensor

    @classmethod
    def of(
        cls, photos: PhotoSet, indices: np.ndarray, autoencoder: PatchAutoencoder, tokenizer: Tokenizer, seed: int
    ) -> GroundedPhotos:
        """Those of `indices` whose ground is plain and whose caption names one thing.

        Raises:
            ValueError: There is no such photo.
        """
        words = object_words(photos.captions)
        latents, masks, ids, marked = [], [], [], []
        for index in indices:
            small = photos.square(int(index), MASK_SIDE).mul(255).round().byte().permute(1, 2, 0).numpy()
            mask = object_mask(small) if words[index] else None
            if mask is None:
                continue
            squares, regions = zip(*(window(photos, int(index), mask, k, seed) for k in range(WINDOWS)), strict=True)
            latents.append(autoencoder.encode(torch.stack(squares)))
            masks.append(torch.stack(regions))
            tokens = tokenizer(photos.captions[index])
            ids.append(torch.tensor(tokens.ids))
            places = [place for word in words[index] for place in tokens.of(word)]
            marked.append(torch.zeros(len(tokens.ids)).index_fill_(0, torch.tensor(places), 1.0))
        if not latents:
            raise ValueError(
                "no photo has a plain ground and a caption of one thing; grounding needs such photos, leave it out"
            )
        return cls(*(torch.stack(parts) for parts in (latents, masks, ids, marked)))

    def __len__(self) -> int:
        return len(self.ids)


def window(photos: PhotoSet, index: int, mask: np.ndarray, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """The central square (number 0) or a part of it, every second window mirrored: image and mask."""
    rng = step_rng(seed + number, -index - 1)
    part = 1.0 if number == 0 else rng.uniform(1 - 2 * (1 - WINDOW_PART), 1)
    left, top = rng.uniform(0, 1 - part, 2) if number else (0.0, 0.0)
    photo = photos.photo(index)
    short = min(photo.shape[:2])
    corner = ((photo.shape[1] - short) / 2, (photo.shape[0] - short) / 2)

    def cut(image: Image.Image, span: int, origin: tuple[float, float], side: int) -> Tensor:
        x, y = origin[0] + left * span, origin[1] + top * span
        box = (x, y, x + part * span, y + part * span)
        filtering = Image.Resampling.LANCZOS if image.mode == "RGB" else Image.Resampling.BILINEAR
        values = np.asarray(image.resize((side, side), filtering, box=box))
        values = torch.from_numpy((values[:, ::-1] if number % 2 else values).copy()).float() / 255
        return values.permute(2, 0, 1) if values.ndim == 3 else values[None]

    region = Image.fromarray(mask.astype(np.uint8) * 255)
    return (
        cut(Image.fromarray(photo), short, corner, SIDE * FACTOR),
        cut(region, len(mask), (0.0, 0.0), SIDE),
    )


def cross_attention_parameters(unet: UNet) -> list[nn.Parameter]:
    """Queries, keys, values and outputs of all cross-attention layers."""
    return [parameter for name, parameter in unet.named_parameters() if ".attn2." in name]


def attention_outside(maps: AttentionMaps, tokens: Tensor, masks: Tensor) -> Tensor:
    """Mean over layers, heads and photos of the squared share of attention outside of the object.

    Args:
        maps: Cross-attention (B,heads,N,T) of each layer.
        tokens: (B,T), 1 at the object's tokens.
        masks: (B,1,h,w), the object's part of each position.
    """
    losses = []
    for name, attention in maps.cross_attention.items():
        heat = torch.einsum("bhnt,bt->bhn", attention.float(), tokens)
        inside = F.interpolate(masks, maps.sizes[name], mode="area").flatten(1)[:, None]
        share = (heat * inside).sum(-1) / heat.sum(-1).clamp_min(LEAST_ATTENTION)
        losses.append((1 - share).square().mean())
    return torch.stack(losses).mean()


def record_cross(kind: str, tokens: int) -> bool:
    return kind == "cross"


def train_grounding(
    unet: UNet,
    text: TextEncoder,
    tokenizer: Tokenizer,
    photos: PhotoSet,
    autoencoder: PatchAutoencoder,
    out: Path,
    *,
    seed: int,
    budget: Budget,
    device: str,
) -> UNet:
    """Ground a trained UNet (resuming ``out/grounding.pt`` if it is there), export it into ``out`` and return it.

    Writes ``grounding.pt`` and ``grounding.jsonl``: both losses, also on training photos that it leaves out.

    Raises:
        ValueError: The checkpoint belongs to another UNet, or no photo has a plain ground.
    """
    checkpoint, step = out / "grounding.pt", 0
    teacher = copy.deepcopy(unet).requires_grad_(False)
    unet.requires_grad_(False)
    parameters = [parameter.requires_grad_() for parameter in cross_attention_parameters(unet)]
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["exported"] != fingerprint(unet.state_dict()):
            raise ValueError(
                f"{checkpoint} belongs to another UNet than {out / UNET_FILE}; delete it to ground this one"
            )
        teacher.load_state_dict(state["teacher"])
        unet.load_state_dict(state["unet"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        budget.resume(state["seconds"])
        log.info("grounding: resumed at step %d", step)

    pool = photos.indices(held_out=False)
    checked = pool % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 - 1
    grounded = GroundedPhotos.of(photos, pool[~checked], autoencoder, tokenizer, seed)
    left_out = GroundedPhotos.of(photos, pool[checked], autoencoder, tokenizer, seed)
    log.info("grounding: %d photos with plain grounds, %d more to check on", len(grounded), len(left_out))
    alphas = alphas_cumprod().to(device)
    journal = TrainingLog(out / "grounding.jsonl")

    def losses(
        latents: Tensor, ids: Tensor, timesteps: Tensor, noise: Tensor, tokens: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        z, context = noised(latents, noise, alphas[timesteps]), text(ids)
        probe = AttentionProbe(AttentionControl(record=record_cross), len(tokens))
        with attention_kernel(device, SIDE), torch.autocast(device.split(":")[0], torch.bfloat16):
            with torch.no_grad():
                target = teacher(z, timesteps, context)
            output = unet(z, timesteps, context, probe)
        return attention_outside(probe.maps, tokens, masks), (output.float() - target.float()).square().mean()

    @torch.no_grad()
    def check() -> dict[str, float]:
        """Both losses on the photos left out, with fixed noise."""
        means = []
        for timestep in CHECK_TIMESTEPS:
            latents = left_out.latents[:, 0].to(device)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(timestep)).to(device)
            timesteps = torch.full((len(latents),), timestep, device=device)
            rest = (left_out.tokens.to(device), left_out.masks[:, 0].to(device))
            means.append([float(loss) for loss in losses(latents, left_out.ids.to(device), timesteps, noise, *rest)])
        outside, teaching = np.mean(means, axis=0)
        return {"checked_outside": outside, "checked_teacher": teaching}

    def save() -> None:
        export_module(unet, out / UNET_FILE, unet.config.to_dict())
        save_atomic(checkpoint, {
            "unet": unet.state_dict(), "teacher": teacher.state_dict(), "optimiser": optimiser.state_dict(),
            "step": step, "seconds": budget.seconds(), "exported": fingerprint(unet.state_dict()),
        })  # fmt: skip
        means = {key: journal.mean(key) for key in journal.keys()}
        journal.write(step=step, seconds=budget.seconds(), **means, **check())

    if step == 0:
        save()
    with budget.bar("grounding", step) as bar:
        while not budget.spent(step):
            rng, generator = step_rng(seed, step), step_generator(seed, step)
            chosen, views = rng.integers(len(grounded), size=GROUNDED), rng.integers(WINDOWS, size=GROUNDED)
            others = rng.choice(pool, OTHERS)
            latents = torch.cat([
                grounded.latents[chosen, views].to(device),
                encoded_windows(photos, autoencoder, rng, others, SIDE, device),
            ])  # fmt: skip
            captions = caption_ids(tokenizer, [photos.captions[int(index)] for index in others])
            ids = torch.cat([grounded.ids[chosen], dropped(captions, tokenizer, rng)]).to(device)
            count = GROUNDED + OTHERS
            timesteps = drawn_timesteps(count, generator)[torch.randperm(count, generator=generator)].to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            rate = min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 - budget.progress(step))
            tokens, masks = grounded.tokens[chosen].to(device), grounded.masks[chosen, views].to(device)
            outside, teaching = losses(latents, ids, timesteps, noise, tokens, masks)
            descend(optimiser, outside + TEACHER_WEIGHT * teaching, LEARNING_RATE * rate, GRADIENT_LIMIT)
            step += 1
            journal.collect(outside=outside.detach(), teacher=teaching.detach())
            budget.tick(bar, step, journal)
            if step % CHECK_EVERY == 0:
                save()
    save()
    return unet
