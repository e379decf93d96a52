"""One photo in one loop, of this library or published: the time until success, or the time of each part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attacks import training_mix
from ..diffusion.model import Conditioning
from ..extractors.base import Extractor
from ..imaging.metrics import psnr
from ..models import Loaded
from ..stages.constrained_denoising import original_branch
from ..stages.inversion import invert
from ..stages.inversion_record import Inversion
from ..stages.noise_optimisation import Objective, Settings, optimise
from ..stages.progress import result_of
from ..stages.working_image import padded, working_image
from .cache import generator_for
from .memory import peak_memory
from .photos import Photo
from .published import published_loop
from .stopwatch import PARTS, Stopwatch, TimedAutoencoder, TimedExtractor, TimedModel, clock_of

__all__ = ["LEVELS", "Conditions", "Job", "Parts", "parts_of", "until_success"]

CHECKS = 16  # random attacks after which the image is read
CHECK_SHARE = 4  # how often it is looked: after one of so many iterations as there were so far, each up to the 7th
LEVELS = (0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
PSNR_TOLERANCE = 0.1  # dB


@dataclass(frozen=True)
class Conditions:
    """Conditions that are the same for every photo and for both loops.

    Attributes:
        size: The working size, in pixels.
        device: Where the loops run.
        seed: Of all random draws.
        required: Share of the bits that is success.
        iterations: A fixed number for both loops, without looking for success; None until success.
        breakdown_iterations: Iterations whose parts are timed.
        cpu_time: Count CPU instead of wall time.
    """

    size: int
    device: str
    seed: int
    required: float
    iterations: int | None
    breakdown_iterations: int
    cpu_time: bool


@dataclass
class Job:
    """One photo and its inputs for both loops.

    Attributes:
        photo: What is marked.
        loaded: The model.
        extractor: The reader.
        settings: Of our loop; composition and target hold for both.
        bits: The message.
        conditions: See `Conditions`.
    """

    photo: Photo
    loaded: Loaded
    extractor: Extractor
    settings: Settings
    bits: Tensor
    conditions: Conditions

    def __post_init__(self) -> None:
        self.image = working_image(self.photo.image, self.conditions.size).to(self.conditions.device)

    def inverted(self, s: Settings) -> Inversion:
        """The photo's inversion on the path of settings `s`, made anew."""
        model, autoencoder, encode = self.loaded.model, self.loaded.autoencoder, self.loaded.encode
        with torch.no_grad():
            latent = autoencoder.encode(padded(self.image))
        positive: Conditioning = encode(self.photo.prompt)
        states = invert(model, latent, positive, encode(""), steps=s.steps, start_sigma=s.start_sigma,
                        guidance=s.guidance, method=s.method)  # fmt: skip
        return result_of(states)

    def ours(self, inversion: Inversion, iterations: int) -> Iterator[Tensor]:
        """Our loop, without an early stop of its own."""
        settings = self.settings.with_(patience=iterations)
        if self.conditions.iterations:
            settings = settings.with_(iterations=iterations)
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        original = original_branch(model, autoencoder, inversion, settings.constraint)
        objective = Objective(
            model, autoencoder, inversion, self.image, self.extractor, self.bits, settings, original=original
        )
        for state in optimise(objective, generator=self._generator("ours")):
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

        0 if the image misses the target PSNR, and as soon as it is clear that the share is not `at_least`.
        """
        if psnr(marked, self.image) < self.settings.target_psnr - PSNR_TOLERANCE:
            return 0.0
        expected, wrong = self.bits.bool().to(marked.device), 0
        count = CHECKS * len(expected)
        with torch.no_grad():
            for i, attack in enumerate(training_mix().draw(self._generator("checks"), CHECKS)):
                attacked = attack(marked, generator_for(self.conditions.seed, "check", i))
                read = self.extractor.logits(attacked.images, attacked.geometry)[0] > 0
                wrong += int((read != expected).sum())
                if 1 - wrong / count < at_least:
                    return 0.0
        return 1 - wrong / count

    def on(self, watch: Stopwatch) -> Job:
        """The same job, with the time of each part measured."""
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        timed = Loaded(TimedModel(model, watch), TimedAutoencoder(autoencoder, watch), self.loaded.encode)
        return Job(self.photo, timed, TimedExtractor(self.extractor, watch), self.settings, self.bits, self.conditions)

    def _generator(self, purpose: str) -> torch.Generator:
        return generator_for(self.conditions.seed, self.photo.name, purpose)


def until_success(
    job: Job, settings: Settings, learning_rate: float | None, cap_iterations: int, cap_seconds: float
) -> dict[str, Any]:
    """Run a loop (this library's without a learning rate) until success, or a cap.

    Args:
        job: The photo.
        settings: The loop's path: inversion, start sigma, steps, guidance.
        learning_rate: Of the published loop.
        cap_iterations: Most iterations; reached exactly where the conditions fix their number.
        cap_seconds: After which no further iteration is begun.
    """
    conditions = job.conditions
    iterations, success, finite, best, first = 0, False, True, 0.0, 0.0
    levels: dict[str, float] = {}
    with peak_memory(conditions.device) as peak:
        clock = _Clock(conditions.device, conditions.cpu_time)
        inversion = job.inverted(settings)
        if learning_rate is None:
            images = job.ours(inversion, cap_iterations)
        else:
            images = job.published(inversion, learning_rate)
        for marked in images:
            iterations += 1
            seconds = clock.seconds()
            first = seconds if iterations == 1 else first
            finite = finite and bool(torch.isfinite(marked).all())
            last = iterations >= cap_iterations or seconds >= cap_seconds
            if not conditions.iterations and (last or iterations % max(1, iterations // CHECK_SHARE) == 0):
                with clock.paused():
                    open_levels = [level for level in LEVELS if f"{level:g}" not in levels]
                    share = job.share(marked, 0.0 if last else min(conditions.required, *open_levels, 1.0))
                best, success = max(best, share), share >= conditions.required
                for level in LEVELS:
                    if share >= level:
                        levels.setdefault(f"{level:g}", seconds)
            if success or last:
                break
        images.close()
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
    """Time of a loop by part; see `until_success`."""
    count = job.conditions.breakdown_iterations
    watch = Stopwatch(job.conditions.device, job.conditions.cpu_time)
    timed = job.on(watch)
    with watch.watching():
        watch.start()
        inversion = timed.inverted(settings)
        if learning_rate is None:
            images = timed.ours(inversion, count + 1)
        else:
            images = timed.published(inversion, learning_rate)
        next(images)
        watch.change(PARTS[-1])
        start = dict(watch.seconds)
        watch.start()
        for _ in range(count):
            next(images)
        watch.change(PARTS[-1])
    images.close()
    return Parts(
        {part: start.get(part, 0.0) for part in PARTS}, {part: watch.seconds.get(part, 0.0) / count for part in PARTS}
    )
