"""One photo through one loop: until it holds, or for some iterations by part."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attacks import training_mix
from ..commands.models import Loaded
from ..constrained import original_branch
from ..extractors.base import Extractor
from ..inversion import invert
from ..inversion import run as last_of
from ..metrics import psnr
from ..model import Conditioning
from ..optimise import Settings, optimise
from ..pipeline import working_image
from ..trajectory import Inversion
from .cache import generator_for
from .memory import peak_memory
from .photos import Photo
from .published import published_loop
from .stopwatch import PARTS, Stopwatch, TimedAutoencoder, TimedExtractor, TimedModel

__all__ = ["Job", "breakdown", "until_success"]

CHECKS = 16  # random attacks that the picture is read after
CHECK_EVERY, CHECK_LATE, LATE = 2, 5, 60  # iterations: looked at every second one, from the 60th on every fifth
LEVELS = (0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
PSNR_TOLERANCE = 0.1  # dB


@dataclass
class Job:
    """One photo on the bench.

    Attributes:
        photo: What is marked.
        loaded: The model.
        extractor: The reader.
        settings: Of our loop; inversion and target hold for both.
        bits: The message.
        args: The command line.
    """

    photo: Photo
    loaded: Loaded
    extractor: Extractor
    settings: Settings
    bits: Tensor
    args: argparse.Namespace

    def __post_init__(self) -> None:
        working, padded = working_image(self.photo.image, self.args.size)
        self.image, self.padded = working.to(self.args.device), padded.to(self.args.device)

    def inverted(self) -> Inversion:
        """The photo's inversion, made anew."""
        model, autoencoder, encode = self.loaded.model, self.loaded.autoencoder, self.loaded.encode
        with torch.no_grad():
            latent = autoencoder.encode(self.padded)
        positive: Conditioning = encode(self.photo.prompt)
        s = self.settings
        states = invert(model, latent, positive, encode(""), steps=s.steps, start_sigma=s.start_sigma,
                        guidance=s.guidance, method=s.method)  # fmt: skip
        return last_of(states)

    def ours(self, inversion: Inversion, iterations: int) -> Iterator[Tensor]:
        """Our loop, without an early stop of its own."""
        settings = self.settings.with_(iterations=iterations, patience=iterations)
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        original = original_branch(model, autoencoder, inversion, settings.constraint)
        states = optimise(model, autoencoder, inversion, self.image, self.extractor, self.bits, settings,
                          generator=self._generator("ours"), original=original)  # fmt: skip
        for state in states:
            yield state.image

    def published(self, inversion: Inversion, learning_rate: float) -> Iterator[Tensor]:
        """The published loop."""
        return published_loop(
            self.loaded.model,
            self.loaded.autoencoder,
            inversion,
            self.image,
            self.extractor,
            self.bits,
            learning_rate=learning_rate,
            target_psnr=self.settings.target_psnr,
            luma_only=self.settings.luma_only,
            generator=self._generator("published"),
        )

    def share(self, marked: Tensor) -> float:
        """Share of the bits that are read after the fixed attacks; 0 if the picture misses the target PSNR."""
        if psnr(marked, self.image) < self.settings.target_psnr - PSNR_TOLERANCE:
            return 0.0
        expected, right = self.bits.bool().to(marked.device), 0
        with torch.no_grad():
            for i, attack in enumerate(training_mix().draw(self._generator("checks"), CHECKS)):
                attacked = attack(marked, generator_for(self.args.seed, "check", i))
                read = self.extractor.logits(attacked.images, attacked.geometry)[0] > 0
                right += int((read == expected).sum())
        return right / (CHECKS * len(expected))

    def on(self, watch: Stopwatch) -> Job:
        """The same job with its parts on a stopwatch."""
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        timed = Loaded(TimedModel(model, watch), TimedAutoencoder(autoencoder, watch), self.loaded.encode)
        return Job(
            self.photo, timed, TimedExtractor(self.extractor, watch), self.settings, self.bits, self.args
        )

    def _generator(self, purpose: str) -> torch.Generator:
        return generator_for(self.args.seed, self.photo.name, purpose)


def until_success(job: Job, learning_rate: float | None, args: argparse.Namespace) -> dict[str, Any]:
    """Run a loop (ours without a learning rate) until success, a cap, or the fixed number of iterations."""
    cap = args.iterations or args.cap_iterations
    seconds, iterations, success, finite, best = 0.0, 0, False, True, 0.0
    levels: dict[str, float] = {}
    planned = min(cap, args.iterations or job.settings.iterations)
    with peak_memory(args.device) as peak:
        while not success and iterations < cap and seconds < args.cap_seconds:
            clock = _Clock(args.device)
            inversion = job.inverted()
            if learning_rate is None:
                # Our step size follows a plan, so a photo that needs longer starts again with a longer one.
                pictures = job.ours(inversion, min(planned, cap - iterations))
                planned *= 2
            else:
                pictures = job.published(inversion, learning_rate)
            setup = clock.seconds()
            for marked in pictures:
                iterations += 1
                so_far = seconds + clock.seconds()
                finite = finite and bool(torch.isfinite(marked).all())
                if (
                    not args.iterations
                    and iterations % (CHECK_EVERY if iterations < LATE else CHECK_LATE) == 0
                ):
                    with clock.paused():
                        share = job.share(marked)
                    best, success = max(best, share), share >= args.required
                    for level in LEVELS:
                        if share >= level:
                            levels.setdefault(f"{level:g}", so_far)
                if success or iterations >= cap or so_far >= args.cap_seconds:
                    break
            seconds = so_far
            pictures.close()
    return {
        "photo": job.photo.name,
        "success": success,
        "iterations": iterations,
        "best_share": best,
        "seconds": seconds,
        "seconds_to_share": levels,
        "setup_seconds": setup,
        "seconds_per_iteration": (seconds - setup) / iterations,
        "peak_megabytes": peak.megabytes,
        "finite": finite,
    }


class _Clock:
    """Wall time since it was made, without pauses; on CUDA the work is waited for."""

    def __init__(self, device: str) -> None:
        self._cuda, self._out = device.startswith("cuda"), 0.0
        self._start = self._now()

    def seconds(self) -> float:
        return self._now() - self._start - self._out

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._pause = self._now()

    def __exit__(self, *_: object) -> None:
        self._out += self._now() - self._pause

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def breakdown(job: Job, learning_rate: float | None, args: argparse.Namespace) -> dict[str, float]:
    """Seconds an iteration by part."""
    count = args.breakdown_iterations
    inversion = job.inverted()
    watch = Stopwatch(args.device)
    timed = job.on(watch)
    # One iteration more, which is left out: it warms up, and has our loop's setup in it.
    pictures = (
        timed.ours(inversion, count + 1)
        if learning_rate is None
        else timed.published(inversion, learning_rate)
    )
    with watch.watching():
        next(pictures)
        watch.start()
        for _ in range(count):
            next(pictures)
        watch.change(PARTS[-1])
    seconds = dict(watch.seconds)
    pictures.close()
    return {part: seconds.get(part, 0.0) / count for part in PARTS}
