"""One photo through one loop, ours or the published one: until it holds, or for some iterations by part."""

from __future__ import annotations

import argparse
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
from .stopwatch import PARTS, Stopwatch, TimedAutoencoder, TimedExtractor, TimedModel, clock_of

__all__ = ["LEVELS", "Job", "Parts", "parts_of", "until_success"]

CHECKS = 16  # random attacks that the picture is read after
CHECK_SHARE = 4  # how often it is looked: after one of so many iterations as there were so far, each up to the 7th
LEVELS = (0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
PSNR_TOLERANCE = 0.1  # dB


@dataclass
class Job:
    """One photo on the bench.

    Attributes:
        photo: What is marked.
        loaded: The model.
        extractor: The reader.
        settings: Of our loop; composition and target hold for both.
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

    def inverted(self, s: Settings) -> Inversion:
        """The photo's inversion on the path of settings `s`, made anew."""
        model, autoencoder, encode = self.loaded.model, self.loaded.autoencoder, self.loaded.encode
        with torch.no_grad():
            latent = autoencoder.encode(self.padded)
        positive: Conditioning = encode(self.photo.prompt)
        states = invert(model, latent, positive, encode(""), steps=s.steps, start_sigma=s.start_sigma,
                        guidance=s.guidance, method=s.method)  # fmt: skip
        return last_of(states)

    def ours(self, inversion: Inversion, iterations: int) -> Iterator[Tensor]:
        """Our loop, without an early stop of its own."""
        settings = self.settings.with_(patience=iterations)
        if self.args.iterations:
            settings = settings.with_(iterations=iterations)
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

    def share(self, marked: Tensor, at_least: float = 0.0) -> float:
        """Share of the bits that are read after the fixed attacks.

        0 if the picture misses the target PSNR, and as soon as it is clear that the share is not `at_least`.
        """
        if psnr(marked, self.image) < self.settings.target_psnr - PSNR_TOLERANCE:
            return 0.0
        expected, wrong = self.bits.bool().to(marked.device), 0
        count = CHECKS * len(expected)
        with torch.no_grad():
            for i, attack in enumerate(training_mix().draw(self._generator("checks"), CHECKS)):
                attacked = attack(marked, generator_for(self.args.seed, "check", i))
                read = self.extractor.logits(attacked.images, attacked.geometry)[0] > 0
                wrong += int((read != expected).sum())
                if 1 - wrong / count < at_least:
                    return 0.0
        return 1 - wrong / count

    def on(self, watch: Stopwatch) -> Job:
        """The same job with its parts on a stopwatch."""
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        timed = Loaded(TimedModel(model, watch), TimedAutoencoder(autoencoder, watch), self.loaded.encode)
        return Job(self.photo, timed, TimedExtractor(self.extractor, watch), self.settings, self.bits, self.args)

    def _generator(self, purpose: str) -> torch.Generator:
        return generator_for(self.args.seed, self.photo.name, purpose)


def until_success(
    job: Job, settings: Settings, learning_rate: float | None, cap_iterations: int, cap_seconds: float
) -> dict[str, Any]:
    """Run a loop (ours without a learning rate) until success, or a cap.

    Args:
        job: The photo.
        settings: The loop's path: inversion, start sigma, steps, guidance.
        learning_rate: Of the published loop.
        cap_iterations: Most iterations; reached exactly where the command line fixes their number.
        cap_seconds: After which no further iteration is begun.
    """
    args = job.args
    iterations, success, finite, best, first = 0, False, True, 0.0, 0.0
    levels: dict[str, float] = {}
    with peak_memory(args.device) as peak:
        clock = _Clock(args.device, args.cpu_time)
        inversion = job.inverted(settings)
        if learning_rate is None:
            pictures = job.ours(inversion, cap_iterations)
        else:
            pictures = job.published(inversion, learning_rate)
        for marked in pictures:
            iterations += 1
            seconds = clock.seconds()
            first = seconds if iterations == 1 else first
            finite = finite and bool(torch.isfinite(marked).all())
            last = iterations >= cap_iterations or seconds >= cap_seconds
            if not args.iterations and (last or iterations % max(1, iterations // CHECK_SHARE) == 0):
                with clock.paused():
                    open_levels = [level for level in LEVELS if f"{level:g}" not in levels]
                    share = job.share(marked, 0.0 if last else min(args.required, *open_levels, 1.0))
                best, success = max(best, share), share >= args.required
                for level in LEVELS:
                    if share >= level:
                        levels.setdefault(f"{level:g}", seconds)
            if success or last:
                break
        pictures.close()
    return {
        "photo": job.photo.name,
        "success": success,
        "iterations": iterations,
        "best_share": best,
        "seconds": seconds,
        "seconds_to_share": levels,
        "seconds_to_first": first,
        "seconds_per_iteration": (seconds - first) / (iterations - 1) if iterations > 1 else None,
        "peak_megabytes": peak.megabytes,
        "finite": finite,
    }


class _Clock:
    """Wall or CPU time since it was made, without pauses; on CUDA the work is waited for."""

    def __init__(self, device: str, cpu_time: bool) -> None:
        self._cuda, self._out, self._time = device.startswith("cuda"), 0.0, clock_of(cpu_time)
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
        return self._time()


@dataclass(frozen=True)
class Parts:
    """Seconds by part.

    Attributes:
        start: All before the second iteration: inversion, original branch, warm start, first iteration.
        iteration: Of each iteration after it.
    """

    start: dict[str, float]
    iteration: dict[str, float]


def parts_of(job: Job, settings: Settings, learning_rate: float | None) -> Parts:
    """Where the time of a loop goes; see `until_success`."""
    count = job.args.breakdown_iterations
    watch = Stopwatch(job.args.device, job.args.cpu_time)
    timed = job.on(watch)
    with watch.watching():
        watch.start()
        inversion = timed.inverted(settings)
        if learning_rate is None:
            pictures = timed.ours(inversion, count + 1)
        else:
            pictures = timed.published(inversion, learning_rate)
        next(pictures)
        watch.change(PARTS[-1])
        start = dict(watch.seconds)
        watch.start()
        for _ in range(count):
            next(pictures)
        watch.change(PARTS[-1])
    pictures.close()
    return Parts(
        {part: start.get(part, 0.0) for part in PARTS}, {part: watch.seconds.get(part, 0.0) / count for part in PARTS}
    )
