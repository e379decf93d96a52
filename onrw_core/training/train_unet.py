"""Training of the embedded model's UNet and text encoder on latents of captioned photos (v-prediction).

Three window sizes share one network: training begins on 16x16 latents (whole scenes of 144 px, four times cheaper),
goes on mostly with 32x32 and mixes in 64x64. Captions are dropped now and then for classifier-free guidance (Ho &
Salimans 2022), and single words are swapped for their hashed buckets so that unknown words mean "some word". An
exponential moving average of the weights is what is exported.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..mini.adapter import Mini, MiniAutoencoder, MiniModel
from ..mini.autoencoder import PatchAutoencoder
from ..mini.diffusion import TIMESTEPS, alphas_cumprod, noised, velocity
from ..mini.text import SPECIAL_TOKENS, TextEncoder, Tokenizer
from ..mini.unet import UNet, UNetConfig
from ..mini.weights import TEXT_FILE, UNET_FILE, export_module, load_text, load_unet
from .data import PhotoSet
from .latents import LatentSet, encoded_windows
from .loop import Budget, TrainingLog, descend, save_atomic, step_generator, step_rng
from .sampling import sample
from .sheets import save_grid

__all__ = ["train_unet"]

log = logging.getLogger(__name__)
LEARNING_RATE = 8e-4
WARMUP_STEPS = 200
DECAY_FROM = 0.65  # part of the budget after which the learning rate falls linearly to a twentieth
EMA_DECAY = 0.998
UNIFORM_EVERY = 4
PLAIN_ATTENTION_SIDE = 32
CAPTION_DROPOUT = 0.12
WORD_DROPOUT = 0.03
PHOTO_SIDES = {16: 144, 32: 288}  # of the encoded photos; larger windows are encoded when drawn
BATCHES = {16: 16, 32: 6, 64: 2}
GPU_BATCH_FACTOR = 32
SMALL_PART = 0.48  # part of the budget that is spent mostly on 16x16
SHARES_EARLY = {16: 0.9, 32: 0.1}
SHARES_LATE = {16: 0.1, 32: 0.82, 64: 0.08}
CHECKPOINT_SECONDS = 300
SHEET_SECONDS = 900
PROBE_TIMESTEPS = (20, 150, 400, 700, 950)
SHEET_PROMPTS = (
    "a photo of a dress", "a photo of a pair of shoes", "a photo of a t shirt", "a photo of a hat",
    "a photo of banana in a grocery store", "a photo of lemon in a grocery store",
    "a photo of red bell pepper in a grocery store", "a photo of cucumber in a grocery store",
)  # fmt: skip


def train_unet(
    photos: PhotoSet,
    autoencoder: PatchAutoencoder,
    autoencoder_name: str,
    out: Path,
    *,
    seed: int,
    budget: Budget,
    device: str,
    config: UNetConfig | None = None,
) -> None:
    """Train and export the averaged weights into ``out``.

    Resumes ``out/unet.pt``; without it, begins with exported weights that are in ``out`` already, or afresh.

    Writes ``unet.pt``, ``unet.jsonl`` (loss, held-out error of v per timestep), ``unet_samples.png`` and the exported
    weight files at every checkpoint.
    """
    config = UNetConfig() if config is None else config
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_captions(photos.captions)
    torch.manual_seed(seed)
    nets = nn.ModuleDict({"unet": UNet(config), "text": TextEncoder(len(tokenizer))}).to(device)
    average = nn.ModuleDict({"unet": UNet(config), "text": TextEncoder(len(tokenizer))}).to(device)
    average.load_state_dict(nets.state_dict())
    average.requires_grad_(False)
    optimiser = torch.optim.AdamW(nets.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    checkpoint, step = out / "unet.pt", 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["autoencoder"] != autoencoder_name:
            raise ValueError(f"{checkpoint} was trained on another autoencoder; give another --out or delete it")
        nets.load_state_dict(state["nets"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        budget.resume(state["seconds"])
        log.info("unet: resumed at step %d", step)
    elif (out / UNET_FILE).is_file() and (out / TEXT_FILE).is_file():
        warm_start(nets, tokenizer, out)
        average.load_state_dict(nets.state_dict())
    if device.startswith("cuda"):
        nets.to(memory_format=torch.channels_last)

    journal = TrainingLog(out / "unet.jsonl")
    scales: dict[int, LatentSet] = {}

    def windows(rng: np.random.Generator, indices: np.ndarray, side: int) -> Tensor:
        if side not in PHOTO_SIDES:
            return encoded_windows(photos, autoencoder, rng, indices, side, device)
        if side not in scales:
            cache = out / "cache"
            scales[side] = LatentSet(photos, autoencoder, PHOTO_SIDES[side], cache, autoencoder_name, device)
        return scales[side].windows(rng, indices, side).to(device)

    pool = photos.indices(held_out=False)
    probe_photos = photos.indices(held_out=True)[::3]
    alphas = alphas_cumprod().to(device)
    factor = GPU_BATCH_FACTOR if device.startswith("cuda") else 1
    saved = sheeted = budget.seconds()

    def save() -> None:
        save_atomic(checkpoint, {
            "nets": nets.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict(),
            "step": step, "seconds": budget.seconds(), "autoencoder": autoencoder_name,
        })  # fmt: skip
        export_module(average["unet"], out / UNET_FILE, config.to_dict())
        export_module(average["text"], out / TEXT_FILE, {"vocabulary": tokenizer.vocabulary})
        held_out = windows(step_rng(seed, -1), probe_photos, 32)
        ids = caption_ids(tokenizer, [photos.captions[int(index)] for index in probe_photos]).to(device)
        errors = {f"v{t}": probe_error(average, held_out, ids, t, alphas) for t in PROBE_TIMESTEPS}
        losses = {key: journal.mean(key) for key in journal.keys()}
        journal.write(step=step, seconds=budget.seconds(), **losses, **errors)

    with budget.bar("unet", step) as bar:
        while not budget.spent(step):
            rng, generator = step_rng(seed, step), step_generator(seed, step)
            progress = budget.progress(step)
            shares = SHARES_EARLY if progress < SMALL_PART else SHARES_LATE
            side = int(rng.choice(list(shares), p=list(shares.values())))
            count = BATCHES[side] * factor
            chosen = rng.choice(pool, count)
            x0 = windows(rng, chosen, side)
            ids = dropped(caption_ids(tokenizer, [photos.captions[int(k)] for k in chosen]), tokenizer, rng).to(device)
            timesteps = drawn_timesteps(count, generator).to(device)
            noise = torch.randn(x0.shape, generator=generator).to(device)
            rate = min(1.0, (step + 1) / WARMUP_STEPS)
            rate *= 1.0 - 0.95 * max(0.0, progress - DECAY_FROM) / (1.0 - DECAY_FROM)
            z, target = noised(x0, noise, alphas[timesteps]), velocity(x0, noise, alphas[timesteps])
            with attention_kernel(device, side), torch.autocast(device.split(":")[0], torch.bfloat16):
                output = nets["unet"](z, timesteps, nets["text"](ids))
            loss = (output.float() - target).square().mean()
            descend(optimiser, loss, LEARNING_RATE * rate, 1.0)
            step += 1
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(nets.parameters()), 1.0 - decay)
            journal.collect(**{f"loss{side}": loss.detach()})
            budget.tick(bar, step, journal)
            if budget.seconds() - saved > CHECKPOINT_SECONDS:
                save()
                saved = budget.seconds()
            if budget.seconds() - sheeted > SHEET_SECONDS:
                sample_sheet(average, autoencoder, tokenizer, out / "unet_samples.png")
                sheeted = budget.seconds()
    save()
    sample_sheet(average, autoencoder, tokenizer, out / "unet_samples.png")


def warm_start(nets: nn.ModuleDict, tokenizer: Tokenizer, out: Path) -> None:
    """Start from exported weights, to continue a run of another machine without its large checkpoint.

    Raises:
        ValueError: The weights have another structure or another vocabulary than this run.
    """
    unet, (known, text) = load_unet(out), load_text(out)
    if unet.config != nets["unet"].config or known.vocabulary != tokenizer.vocabulary:
        raise ValueError(
            f"the weights in {out} have another structure or other words; give another --out or delete them"
        )
    nets["unet"].load_state_dict(unet.state_dict())
    nets["text"].load_state_dict(text.state_dict())
    log.info("unet: goes on from the exported weights in %s", out)


def attention_kernel(device: str, side: int) -> AbstractContextManager:
    """On a CPU, plain attention trains small windows a sixth faster than the fused kernel; else torch decides."""
    if device.startswith("cpu") and side <= PLAIN_ATTENTION_SIDE:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def drawn_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps (count,), one from each of ``count`` equal parts of their distribution.

    Three of four are logit-normal (Esser et al. 2024): the middle of the schedule determines the content of
    images, and its ends are easy to learn. The others are uniform, so that every noise level is trained.
    """
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    middle = torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)).sigmoid()
    part = torch.where(torch.arange(count) % UNIFORM_EVERY == UNIFORM_EVERY - 1, strata, middle)
    return (part * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)


def caption_ids(tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    """Token ids (N,64)."""
    return torch.tensor([tokenizer(caption).ids for caption in captions])


def dropped(ids: Tensor, tokenizer: Tokenizer, rng: np.random.Generator) -> Tensor:
    """Some captions replaced by the empty one, some words (everywhere in their caption) by their buckets."""
    first = SPECIAL_TOKENS + tokenizer.buckets
    for row in ids:
        if rng.random() < CAPTION_DROPOUT:
            row.copy_(torch.tensor(tokenizer("").ids))
            continue
        for token in row[row >= first].unique():
            if rng.random() < WORD_DROPOUT:
                row[row == token] = tokenizer.bucket(tokenizer.vocabulary[int(token) - first])
    return ids


@torch.no_grad()
def probe_error(nets: nn.ModuleDict, x0: Tensor, ids: Tensor, timestep: int, alphas: Tensor) -> float:
    """Mean squared error of v on held-out latents at one timestep, with fixed noise."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(timestep)).to(x0.device)
    timesteps = torch.full((len(x0),), timestep, device=x0.device)
    output = nets["unet"](noised(x0, noise, alphas[timesteps]), timesteps, nets["text"](ids))
    return float((output - velocity(x0, noise, alphas[timesteps])).square().mean())


def sample_sheet(nets: nn.ModuleDict, autoencoder: PatchAutoencoder, tokenizer: Tokenizer, path: Path) -> None:
    """Two rows of samples: guidance 1 and guidance 4."""
    mini = Mini(MiniModel(nets["unet"]), MiniAutoencoder(autoencoder), tokenizer, nets["text"])
    rows = [sample(mini, SHEET_PROMPTS, guidance=guidance) for guidance in (1.0, 4.0)]
    save_grid(path, torch.cat(rows), len(SHEET_PROMPTS))
