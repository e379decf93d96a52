"""A small classifier of photos by caption, which tests whether samples match their captions.

It learns the captions that many training photos share, at 64 px, and is not trained on samples. Samples
are less sharp than photos, since they are decoded, so its training images are blurred and get noise of several scales.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..imaging.formats import open_image
from .loop import cosine, save_atomic, step_generator, step_rng

__all__ = ["CaptionClassifier", "class_captions", "load_classifier", "train_classifier"]

log = logging.getLogger(__name__)
LEAST_PHOTOS = 20  # of a caption, for it to be a class
HELD_OUT_EVERY = 10  # every tenth photo measures the classifier
SIDE = 64
ROOM = 72  # shorter side of the photos that windows of SIDE are cut from
WIDTHS = (32, 64, 128)
BATCH = 64
EPOCHS = 30
LEARNING_RATE = 2e-3
LABEL_SMOOTHING = 0.1
MOST_BLUR = 2.0  # sigma in pixels
MOST_NOISE = 0.12  # standard deviation, for each of the scales
NOISE_SCALES = (1, 2, 4, 8)


def class_captions(entries: Sequence[tuple[Path, str]]) -> list[str]:
    """Captions of at least `LEAST_PHOTOS` photos, in the order of their first photo."""
    return [caption for caption, count in Counter(caption for _, caption in entries).items() if count >= LEAST_PHOTOS]


class Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), at half the resolution where the width changes."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stride = 1 if channels == out else 2
        self.net = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1, bias=False),
        )  # fmt: skip
        self.skip = nn.Identity() if stride == 1 else nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.net(x)


class CaptionClassifier(nn.Module):
    """Images (B,3,H,W) in [0,1], any square size -> logits (B, classes)."""

    def __init__(self, captions: Sequence[str]) -> None:
        super().__init__()
        self.captions = list(captions)
        widths = (WIDTHS[0], *WIDTHS)
        self.net = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False),
            *[Block(a, b) for a, b in zip(widths, widths[1:], strict=False)],
            nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(WIDTHS[-1], len(captions)),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != SIDE:
            images = F.interpolate(images, (SIDE, SIDE), mode="area")
        return self.net(images * 4 - 2)

    @torch.no_grad()
    def ranks(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """How many classes each image (B,3,H,W) resembles more than its caption: (B,); mirrored views count, too."""
        logits = (self(images).softmax(-1) + self(images.flip(-1)).softmax(-1)).cpu()
        own = logits[torch.arange(len(captions)), [self.captions.index(caption) for caption in captions]]
        return (logits > own[:, None]).sum(1)


def read_small(path: Path) -> np.ndarray:
    """uint8 (H,W,3) with a shorter side of `ROOM`."""
    with open_image(path) as image:
        scale = ROOM / min(image.size)
        size = [max(ROOM, round(length * scale)) for length in image.size]
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))


def window(photo: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """A square of `SIDE` pixels: random and mirrored at random, or the central one."""
    free = photo.shape[0] - SIDE, photo.shape[1] - SIDE
    top, left = (free[0] // 2, free[1] // 2) if rng is None else (int(rng.integers(f + 1)) for f in free)
    square = photo[top : top + SIDE, left : left + SIDE]
    return square[:, ::-1] if rng is not None and rng.random() < 0.5 else square


def stack(squares: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float().div_(255)


def degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, noise of several scales, brightness, contrast and saturation, drawn for each image (blur: each batch)."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    sigma = float(torch.rand((), generator=generator)) * MOST_BLUR
    if sigma > 0.3:
        radius = 4
        taps = torch.exp(-torch.arange(-radius, radius + 1).float().square() / (2 * sigma**2))
        taps = (taps / taps.sum()).expand(3, 1, 1, -1)
        images = F.pad(images, (radius,) * 4, mode="replicate")
        images = F.conv2d(F.conv2d(images, taps, groups=3), taps.transpose(-1, -2), groups=3)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * draw(0.7, 1.3)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * draw(0.7, 1.3) + draw(-0.12, 0.12)
    for scale in NOISE_SCALES:
        noise = torch.randn(len(images), 3, SIDE // scale, SIDE // scale, generator=generator)
        images = images + F.interpolate(noise, (SIDE, SIDE), mode="nearest") * draw(0, MOST_NOISE) / scale**0.5
    return images.clamp(0, 1)


def train_classifier(entries: Sequence[tuple[Path, str]], epochs: int | None = None, seed: int = 0) -> dict:
    """Train on captioned photos; it takes about a minute on one core.

    Returns:
        ``captions``, ``state`` (weights), and the held-out photos' share with their caption first (``top1``) and among
        the first five (``top5``), of ``held_out`` photos.

    Raises:
        ValueError: No caption has enough photos.
    """
    captions = class_captions(entries)
    if not captions:
        raise ValueError(f"no caption has {LEAST_PHOTOS} photos; give a folder with more photos of the same captions")
    entries = [(path, caption) for path, caption in entries if caption in captions]
    photos = [read_small(path) for path, _ in entries]
    labels = torch.tensor([captions.index(caption) for _, caption in entries])
    held_out = [k for k in range(len(photos)) if k % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    pool = np.setdiff1d(np.arange(len(photos)), held_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CaptionClassifier(captions)
        optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
        steps = max(1, (epochs or EPOCHS) * len(pool) // BATCH)
        for step in range(steps):
            rng = step_rng(seed, step)
            chosen = rng.choice(pool, min(BATCH, len(pool)), replace=False)
            images = degraded(stack([window(photos[k], rng) for k in chosen]), step_generator(seed, step))
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * cosine(step / steps)
            loss = F.cross_entropy(model(images), labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 100 == 0:
                log.info("classifier: step %d of %d, loss %.3f", step, steps, loss.item())
    model.eval()
    ranks = model.ranks(stack([window(photos[k], None) for k in held_out]), [entries[k][1] for k in held_out])
    return {
        "captions": captions, "state": model.state_dict(), "held_out": len(held_out),
        "top1": (ranks < 1).float().mean().item(), "top5": (ranks < 5).float().mean().item(),
    }  # fmt: skip


def load_classifier(entries: Sequence[tuple[Path, str]], cache: Path) -> tuple[CaptionClassifier, dict]:
    """The classifier of these photos' captions and its held-out figures, from `cache`, or trained and kept there."""
    record = torch.load(cache, weights_only=True) if cache.is_file() else {}
    if record.get("captions") != class_captions(entries):
        record = train_classifier(entries)
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_atomic(cache, record)
    model = CaptionClassifier(record["captions"])
    model.load_state_dict(record["state"])
    return model.eval(), {key: record[key] for key in ("top1", "top5", "held_out")}
